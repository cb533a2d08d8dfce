//! THE table of files: a row each. Mode bits, sizes, readdir, ENOENT and the README follow from it.

use super::row::{Need, Row, Shape, Show, Size, Work};
use super::{capabilities, control, files, info, mem, regs, vcpu};

const fn dir(path: &'static str, need: Need, about: &'static str) -> Row {
    Row { path, about, need, shape: Shape::Dir }
}

const fn text(path: &'static str, show: Show, about: &'static str) -> Row {
    let shape = Shape::Content { show: Some(show), store: None, size: None, work: Work::Prompt };
    Row { path, about, need: Need::Nothing, shape }
}

const fn state(path: &'static str) -> Row {
    let (show, size) = (Some(control::show_state as Show), Some(control::state_len as Size));
    let shape = Shape::Content { show, store: None, size, work: Work::Posted };
    Row { path, about: "running | paused", need: Need::Execution, shape }
}

const fn content(path: &'static str, need: Need, shape: Shape, about: &'static str) -> Row {
    Row { path, about, need, shape }
}

/// Every file there is.
pub const TABLE: &[Row] = &[
    dir("", Need::Nothing, "the VM"),
    text("README", files::readme, "this text"),
    text("info", info::show, "facts of the VM and of this mount, a 'key value' line each"),
    text("capabilities", capabilities::show, "what works here, and for what does not: why, and the cure"),
    text("errors", files::errors, "the last 64 refusals, a line each: what was wrong and how to mend it"),
    text("cache", files::cache, "the LRU page cache, a 'key value' line each"),
    state("state"),
    content(
        "ctl",
        Need::Nothing,
        Shape::Content { show: None, store: Some(control::store), size: None, work: Work::Posted },
        "write: pause | resume | resume force | flush",
    ),
    content(
        "mem",
        Need::Nothing,
        Shape::Bytes(&mem::PhysicalFile),
        "guest-physical memory: offset = address",
    ),
    text("mem.map", mem::show_map, "START-END ram|rom|mmio [ram/NAME@OFFSET], a line a region, end excluded"),
    dir("ram", Need::Blocks, "the host-backed blocks of RAM"),
    content("ram/{block}", Need::Blocks, Shape::Block, "a block of RAM; can be mapped with mmap"),
    dir("vcpu", Need::Vcpus, "the vCPUs"),
    dir("vcpu/{vcpu}", Need::Vcpus, "a vCPU"),
    state("vcpu/{vcpu}/state"),
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
        Shape::Bytes(&mem::VirtualFile),
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
