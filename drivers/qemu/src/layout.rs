//! Which memory lies where in the guest, and where in QEMU: asked of the monitor, and only believed if two looks agree.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use vmtree_api::{Error, ErrorKind, RegionKind, Result};

use crate::hmp::answers::{HostAddress, host_address};
use crate::hmp::mtree::{self, Range, RangeKind};
use crate::hmp::ramblock::{self, RamBlock};
use crate::qmp::Qmp;

const OP: &str = "read the memory layout";

/// How often a layout that changes under our eyes is read again: firmware moves ROM about while it starts.
const TRIES: u32 = 8;

/// A piece of QEMU's memory that guest-physical ranges point into.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Container {
    /// The name of its memory region: `pc.ram`, or the id of a memory backend.
    pub name: String,
    /// The host-virtual address of its first byte.
    pub base: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

/// A range of the guest's physical address space.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Piece {
    /// The first address.
    pub start: u64,
    /// The address behind the last.
    pub end: u64,
    /// Its kind.
    pub kind: RegionKind,
    /// For RAM and ROM, the container it lies in, by index, and the offset there.
    pub at: Option<(usize, u64)>,
}

/// A whole layout: pieces in ascending order that don't overlap.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Layout {
    /// The ranges.
    pub pieces: Vec<Piece>,
    /// What they lie in.
    pub containers: Vec<Container>,
}

/// Reads the layout.
///
/// # Errors
/// Those of [`Qmp::execute`]; [`ErrorKind::Busy`] if it keeps changing; [`ErrorKind::Protocol`] if it makes no sense.
pub fn read(qmp: &Qmp) -> Result<Layout> {
    for attempt in 0..TRIES {
        if let Some(layout) = look(qmp)? {
            return Ok(layout);
        }
        thread::sleep(Duration::from_millis(20 << attempt));
    }
    Err(Error::new(ErrorKind::Busy, OP, "the guest keeps changing it; try again once its firmware is done"))
}

/// Reads the layout once; `None` if it has changed meanwhile.
///
/// # Errors
/// Those of [`read`].
pub fn look(qmp: &Qmp) -> Result<Option<Layout>> {
    let ranges = flat_view(qmp)?;
    let layout = place(qmp, &ranges)?;
    Ok(layout.filter(|_| flat_view(qmp).is_ok_and(|again| again == ranges)))
}

fn flat_view(qmp: &Qmp) -> Result<Vec<Range>> {
    let nonsense = |why: &str| Error::new(ErrorKind::Protocol, OP, format!("QEMU's 'info mtree -f' {why}"));
    let ranges =
        mtree::parse(&qmp.human("info mtree -f")?).ok_or_else(|| nonsense("shows no system memory"))?;
    if ranges.is_empty() || ranges.windows(2).any(|pair| matches!(pair, [a, b] if b.start <= a.last)) {
        return Err(nonsense("shows no ranges, or some that overlap"));
    }
    Ok(ranges)
}

/// Finds where each range lies in QEMU; `None` if it has changed meanwhile.
fn place(qmp: &Qmp, ranges: &[Range]) -> Result<Option<Layout>> {
    let blocks = ramblock::parse(&qmp.human("info ramblock")?);
    let names = GuestRam::read(qmp)?;
    let mut layout = Layout::default();
    for range in ranges {
        let kind = match range.kind {
            RangeKind::Ram if names.holds(&range.name, &blocks) => RegionKind::Ram,
            RangeKind::Rom => RegionKind::Rom,
            RangeKind::Ram | RangeKind::Device => RegionKind::Mmio,
        };
        let end = range.last.saturating_add(1);
        let mut at = None;
        if kind != RegionKind::Mmio {
            let Some(HostAddress { region, hva }) =
                host_address(&qmp.human(&format!("gpa2hva {:#x}", range.start))?)
            else {
                return Ok(None);
            };
            let Some(base) = hva.checked_sub(range.offset).filter(|_| region == range.name) else {
                return Ok(None);
            };
            let needed = range.offset.saturating_add(end - range.start);
            let Some(index) = container(&mut layout.containers, &blocks, &range.name, base, needed) else {
                return Ok(None);
            };
            at = Some((index, range.offset));
        }
        layout.pieces.push(Piece { start: range.start, end, kind, at });
    }
    Ok(Some(layout))
}

/// The index of the container of that name and base, made if it is new; `None` if the blocks say that it lies
/// elsewhere. Two devices may have ROMs of one name.
fn container(
    all: &mut Vec<Container>,
    blocks: &[RamBlock],
    name: &str,
    base: u64,
    needed: u64,
) -> Option<usize> {
    let named: Vec<&RamBlock> = blocks.iter().filter(|block| block.is_of(name)).collect();
    let here: Vec<&RamBlock> =
        named.iter().copied().filter(|block| block.hva.is_none_or(|hva| hva == base)).collect();
    if here.is_empty() && !named.is_empty() {
        return None;
    }
    let used = here.iter().map(|block| block.used).filter(|used| *used >= needed).min().unwrap_or(needed);
    if let Some(index) = all.iter().position(|known| known.base == base && known.name == name) {
        let known = all.get_mut(index)?;
        known.bytes = known.bytes.max(used);
        return Some(index);
    }
    all.push(Container { name: name.to_owned(), base, bytes: used });
    Some(all.len() - 1)
}

/// What tells guest RAM from the RAM of devices, such as a graphics card's or ivshmem's, which lies where the guest
/// puts it and is not the machine's memory.
struct GuestRam {
    /// The ids of all memory backends; a device may use one too.
    backends: Vec<String>,
    /// Those that memory devices (DIMMs, virtio-mem) plug into the machine.
    plugged: Vec<String>,
}

impl GuestRam {
    fn read(qmp: &Qmp) -> Result<Self> {
        let backends = qmp.execute("query-memdev", Value::Null)?;
        // Machines without memory hotplug may not know it.
        let devices = match qmp.execute("query-memory-devices", Value::Null) {
            Err(error) if !matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Invalid) => {
                return Err(error);
            }
            answer => answer.unwrap_or(json!([])),
        };
        let plugged = strings(&devices, "/data/memdev");
        Ok(Self { backends: strings(&backends, "/id"), plugged })
    }

    /// Whether the memory region `name` is RAM of the machine: a memory backend whose RAMBlock belongs to no device
    /// (its id has no path of an owner before it), or which a memory device plugs in. Before QEMU 5.0, `pc.ram` is
    /// no backend.
    fn holds(&self, name: &str, blocks: &[RamBlock]) -> bool {
        let id = plain_id(name);
        let backend = name == "pc.ram" || self.backends.iter().any(|backend| backend == id);
        let plugged = self.plugged.iter().any(|path| plain_id(path) == id);
        plugged || (backend && blocks.iter().any(|block| block.id == name))
    }
}

/// The id in a backend's canonical path; libvirt and machines before 4.0 name RAM by `/objects/ID`.
pub fn plain_id(name: &str) -> &str {
    name.strip_prefix("/objects/").unwrap_or(name)
}

fn strings(list: &Value, pointer: &str) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(|item| Some(item.pointer(pointer)?.as_str()?.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_told_from_the_ram_of_devices() {
        let ram = GuestRam {
            backends: ["m0", "iv", "vm1", "lib"].map(str::to_owned).to_vec(),
            plugged: vec!["/objects/vm1".to_owned()],
        };
        let ids =
            ["m0", "pc.ram", "0000:00:02.0/iv", "0000:00:03.0/vm1", "0000:00:01.0/vga.vram", "/objects/lib"];
        let blocks = ids.map(|id| RamBlock { id: id.to_owned(), used: 1, hva: None });
        for name in ["m0", "pc.ram", "vm1", "/objects/lib"] {
            assert!(ram.holds(name, &blocks), "{name}");
        }
        for name in ["iv", "vga.vram", "m", ""] {
            assert!(!ram.holds(name, &blocks), "{name}");
        }
    }

    #[test]
    fn containers_of_one_name_and_two_bases_are_two() {
        let block = |hva| RamBlock { id: "0000:00:02.0/rom".to_owned(), used: 0x2000, hva };
        let mut all = Vec::new();
        let mut add = |hva, base, needed| container(&mut all, &[block(hva)], "rom", base, needed);
        assert_eq!(add(None, 0x1000, 0x1000), Some(0));
        assert_eq!(add(Some(0x1000), 0x1000, 0x2000), Some(0));
        assert_eq!(add(None, 0x9000, 0x3000), Some(1));
        assert_eq!(add(Some(0x1000), 0x5000, 0x1000), None, "the two answers differ");
        assert_eq!(all.iter().map(|container| container.bytes).collect::<Vec<_>>(), [0x2000, 0x3000]);
    }
}
