//! THE table of files: a row each. Mode bits, sizes, readdir, ENOENT and the README follow from it.

use super::row::{Need, Row, Shape, Show, Size, Store, Work};
use super::{access, capabilities, control, events, files, info, mem, regs, remap, vcpu, views};

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

/// Content that takes a call which may wait to read, to write, or both.
const fn posted(show: Option<Show>, store: Option<Store>, size: Option<Size>) -> Shape {
    Shape::Content { show, store, size, work: Work::Posted }
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
        posted(None, Some(control::store), None),
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
    content(
        "vcpu/{vcpu}/state",
        Need::Execution,
        posted(Some(vcpu::show_state), None, Some(vcpu::state_len)),
        "running | paused | held SEQ",
    ),
    content(
        "vcpu/{vcpu}/ctl",
        Need::Steps,
        posted(None, Some(vcpu::step), None),
        "write: step [COUNT], while paused",
    ),
    content(
        "vcpu/{vcpu}/inject",
        Need::Injection,
        posted(None, Some(vcpu::inject), None),
        "write: pf ADDR err=CODE | exception VECTOR [err=CODE] | interrupt VECTOR | nmi",
    ),
    content(
        "vcpu/{vcpu}/view",
        Need::Views,
        posted(Some(views::show), Some(views::store), Some(views::len)),
        "the SLAT view it runs on; write to switch",
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
        "where a virtual address lies, or why nowhere",
    ),
    content(
        "view",
        Need::Views,
        posted(Some(views::show), Some(views::store), Some(views::len)),
        "the SLAT view all vCPUs run on, or mixed; write to switch",
    ),
    dir("views", Need::SlatOrViews, "the SLAT views; mkdir makes one, rmdir removes it"),
    dir("views/{view}", Need::SlatOrViews, "a view; 0 is the default view"),
    content(
        "views/{view}/access",
        Need::Slat,
        posted(Some(access::show), Some(access::store), None),
        "permissions that differ from rwx; write: START-END RIGHTS [deny] | reset",
    ),
    content(
        "views/{view}/remap",
        Need::Views,
        posted(Some(remap::show), Some(remap::store), None),
        "frames it shows differently; write: ADDR copy | ADDR OTHER | ADDR -",
    ),
    content(
        "views/{view}/mem",
        Need::Views,
        Shape::Bytes(&remap::ViewFile),
        "guest-physical memory as this view shows it",
    ),
    dir("events", Need::Events, "hardware events: opening one arms it, the last close disarms it"),
    content(
        "events/{event}",
        Need::Events,
        Shape::Stream,
        "a record a line; opened read-write the vCPU waits for: SEQ ACTION",
    ),
    content(
        "events/{event params}",
        Need::Events,
        Shape::Stream,
        "part of a kind: vcpu= dir= index= vector= gpa= access= format=",
    ),
    content(
        "events/stats",
        Need::Events,
        Shape::Content { show: Some(events::stats), store: None, size: None, work: Work::Prompt },
        "a line a kind: what was armed, raised, delivered, lost, answered",
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
