//! THE table of files: a row each. Mode bits, sizes, readdir, ENOENT and the README follow from it.

use vmtree_api::{Driver, Missing};

use super::{Ctx, files};
use super::{bytes, control, info, regs, vcpu};
use crate::error::FsResult;

/// What must be there for a file to exist.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Need {
    /// Nothing.
    Nothing,
    /// Host-backed blocks of RAM.
    Blocks,
    /// Registers.
    Registers,
    /// MSRs by index.
    Msrs,
    /// Pause, resume and step.
    Execution,
    /// Registers or execution: something to show of a vCPU.
    Vcpus,
}

impl Need {
    /// Whether `driver` has it.
    ///
    /// # Errors
    /// Why it has not.
    pub fn met(self, driver: &dyn Driver) -> Result<(), Missing> {
        match self {
            Self::Nothing => Ok(()),
            Self::Blocks if driver.memory().blocks().is_empty() => {
                let missing = Missing::new("the guest's memory is not backed by a file that can be shared");
                Err(missing
                    .cure("start it with a shared memory backend (for QEMU: memory-backend-memfd,share=on)"))
            }
            Self::Blocks => Ok(()),
            Self::Registers => driver.registers().map(drop),
            Self::Msrs => driver.registers()?.msrs().map(drop),
            Self::Execution => driver.execution().map(drop),
            Self::Vcpus => driver.registers().map(drop).or_else(|_| driver.execution().map(drop)),
        }
    }
}

/// Where a request to a file is served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Work {
    /// At once: nothing but cached facts and memory copies.
    Prompt,
    /// As the driver's registers say.
    Registers,
    /// By a worker.
    Posted,
}

/// Makes the content of a file.
pub type Show = fn(&Ctx<'_>) -> FsResult<Vec<u8>>;
/// Takes what was written to a file: all of it, or nothing and an error.
pub type Store = fn(&Ctx<'_>, &[u8]) -> FsResult<()>;
/// The size of a file that is known without making its content.
pub type Size = fn(&Ctx<'_>) -> u64;

/// The shape of a file.
pub enum Shape {
    /// A directory.
    Dir,
    /// Generated content, read and written whole.
    Content {
        /// How it is read, if it can be.
        show: Option<Show>,
        /// How it is written, if it can be.
        store: Option<Store>,
        /// Its size, where it is the same each time.
        size: Option<Size>,
        /// Where both are served.
        work: Work,
    },
    /// A range of bytes at offsets that mean something.
    Bytes(&'static dyn bytes::Bytes),
    /// A host-backed block of RAM.
    Block,
}

/// A file, or each file of a group.
pub struct Row {
    /// Its path; a part in braces stands for each vCPU, register or block, or for a parameter.
    pub path: &'static str,
    /// What it is, for the README.
    pub about: &'static str,
    /// What it needs.
    pub need: Need,
    /// What it looks like.
    pub shape: Shape,
}

const fn dir(path: &'static str, need: Need, about: &'static str) -> Row {
    Row { path, about, need, shape: Shape::Dir }
}

const fn text(path: &'static str, show: Show, about: &'static str) -> Row {
    let shape = Shape::Content { show: Some(show), store: None, size: None, work: Work::Prompt };
    Row { path, about, need: Need::Nothing, shape }
}

const fn content(path: &'static str, need: Need, shape: Shape, about: &'static str) -> Row {
    Row { path, about, need, shape }
}

/// Every file there is.
pub const TABLE: &[Row] = &[
    dir("", Need::Nothing, "the VM"),
    text("README", files::readme, "this text"),
    text("info", info::show, "facts of the VM and of this mount, a 'key value' line each"),
    text(
        "capabilities",
        super::capabilities::show,
        "what works here, and for what does not: why, and the cure",
    ),
    text("errors", files::errors, "the last 64 refusals, a line each: what was wrong and how to mend it"),
    text("cache", files::cache, "the LRU page cache, a 'key value' line each"),
    content(
        "state",
        Need::Execution,
        Shape::Content {
            show: Some(control::show_state),
            store: None,
            size: Some(control::state_len),
            work: Work::Posted,
        },
        "running | paused",
    ),
    content(
        "ctl",
        Need::Nothing,
        Shape::Content { show: None, store: Some(control::store), size: None, work: Work::Posted },
        "write: pause | resume | resume force | flush",
    ),
    content(
        "mem",
        Need::Nothing,
        Shape::Bytes(&super::mem::PhysicalFile),
        "guest-physical memory: offset = address",
    ),
    text(
        "mem.map",
        super::mem::show_map,
        "START-END ram|rom|mmio [ram/NAME@OFFSET], a line a region, end excluded",
    ),
    dir("ram", Need::Blocks, "the host-backed blocks of RAM"),
    content("ram/{block}", Need::Blocks, Shape::Block, "a block of RAM; can be mapped with mmap"),
    dir("vcpu", Need::Vcpus, "the vCPUs"),
    dir("vcpu/{vcpu}", Need::Vcpus, "a vCPU"),
    content(
        "vcpu/{vcpu}/state",
        Need::Execution,
        Shape::Content {
            show: Some(control::show_state),
            store: None,
            size: Some(control::state_len),
            work: Work::Posted,
        },
        "running | paused",
    ),
    content(
        "vcpu/{vcpu}/ctl",
        Need::Execution,
        Shape::Content { show: None, store: Some(vcpu::step), size: None, work: Work::Posted },
        "write: step [COUNT], while paused",
    ),
    dir("vcpu/{vcpu}/regs", Need::Registers, "its registers"),
    content(
        "vcpu/{vcpu}/regs/all",
        Need::Registers,
        Shape::Content {
            show: Some(regs::show_all),
            store: Some(regs::store_all),
            size: Some(regs::all_len),
            work: Work::Registers,
        },
        "all of them at one instant; write any subset, set together or not at all",
    ),
    content(
        "vcpu/{vcpu}/regs/raw",
        Need::Registers,
        Shape::Content {
            show: Some(regs::show_raw),
            store: Some(regs::store_raw),
            size: Some(regs::raw_len),
            work: Work::Registers,
        },
        "the same as a fixed little-endian struct",
    ),
    content(
        "vcpu/{vcpu}/regs/{reg}",
        Need::Registers,
        Shape::Content {
            show: Some(regs::show),
            store: Some(regs::store),
            size: Some(regs::len),
            work: Work::Registers,
        },
        "one register",
    ),
    content("vcpu/{vcpu}/msr", Need::Msrs, Shape::Bytes(&vcpu::MsrFile), "offset = MSR index, 8 bytes each"),
    content(
        "vcpu/{vcpu}/vmem",
        Need::Registers,
        Shape::Bytes(&super::mem::VirtualFile),
        "virtual memory by its page tables; offset = address & 0x7fffffffffffffff",
    ),
    content(
        "vcpu/{vcpu}/translate,{gva}",
        Need::Registers,
        Shape::Content { show: Some(vcpu::translate), store: None, size: None, work: Work::Registers },
        "translate,gva=ADDR: where a virtual address lies, or why nowhere",
    ),
];

/// The row of a path. Paths are unique, which a test checks.
#[must_use]
pub fn row(index: u16) -> &'static Row {
    TABLE.get(usize::from(index)).unwrap_or(&TABLE[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn paths_are_unique_and_have_a_directory_above_them() {
        let mut seen = HashSet::new();
        for row in TABLE {
            if let Some((parent, _)) = row.path.rsplit_once('/') {
                assert!(seen.contains(parent), "{} comes before its directory", row.path);
            }
            assert!(seen.insert(row.path), "{} twice", row.path);
            assert!(!row.about.is_empty());
        }
    }

    #[test]
    fn every_content_row_can_be_read_or_written() {
        for row in TABLE {
            if let Shape::Content { show, store, .. } = &row.shape {
                assert!(show.is_some() || store.is_some(), "{}", row.path);
            }
        }
    }
}
