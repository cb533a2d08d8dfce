//! Guest-physical memory: two blocks of RAM with a hole between them, and the map of it all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmtree_api::memory::{Block, BlockRef, Memory, MemoryMap, Region, RegionKind};
use vmtree_api::{Error, ErrorKind, Gpa, Result};

use crate::sys::Shared;

/// Where the local APIC's registers lie (Intel SDM volume 3A, 11.4.1).
pub const APIC_BASE: u64 = 0xfee0_0000;
/// How many bytes they take.
pub const APIC_BYTES: u64 = 0x1000;
/// RAM is a multiple of this.
pub const GRAIN: u64 = 2 << 20;
/// Where the upper block begins.
const HIGH: u64 = 4 << 30;
/// What the lower block never reaches beyond: devices lie above.
const LOW_END: u64 = 3 << 30;

/// All RAM of a machine.
#[derive(Debug)]
pub struct Ram {
    blocks: Vec<Part>,
    map: Arc<MemoryMap>,
    closed: AtomicBool,
}

#[derive(Debug)]
struct Part {
    name: Arc<str>,
    start: u64,
    bytes: u64,
    shared: Shared,
}

impl Ram {
    /// RAM of `bytes` bytes, a multiple of [`GRAIN`]: three quarters of it at 0, the rest at 4 GiB.
    ///
    /// # Errors
    /// The host has no memory for it.
    pub fn new(bytes: u64) -> Result<Self> {
        let low = (bytes / 4 * 3 / GRAIN * GRAIN).min(LOW_END);
        let mut blocks = Vec::new();
        for (name, start, bytes) in [("low", 0, low), ("high", HIGH, bytes - low)] {
            let shared = Shared::new(name, bytes).map_err(|error| {
                let why = format!("the host gives no {bytes:#x} bytes of memory; ask for less by ram=SIZE");
                Error::new(ErrorKind::NoSpace, "open emu", why).caused_by(error)
            })?;
            blocks.push(Part { name: name.into(), start, bytes, shared });
        }
        let mut regions: Vec<Region> = blocks.iter().map(Part::region).collect();
        regions.push(Region {
            start: Gpa(APIC_BASE),
            end: Gpa(APIC_BASE + APIC_BYTES),
            kind: RegionKind::Mmio,
            block: None,
        });
        Ok(Self { blocks, map: Arc::new(MemoryMap::new(1, regions)), closed: AtomicBool::new(false) })
    }

    /// The block that holds `gpa`, and where in it.
    fn find(&self, gpa: u64) -> Option<(&Part, u64)> {
        self.blocks.iter().find_map(|part| {
            let offset = gpa.checked_sub(part.start)?;
            (offset < part.bytes).then_some((part, offset))
        })
    }

    /// Copies out of RAM; `false` where not all of it is RAM of one block, and `buf` is unchanged.
    pub fn load(&self, gpa: u64, buf: &mut [u8]) -> bool {
        self.find(gpa).is_some_and(|(part, offset)| part.shared.read(offset, buf))
    }

    /// Copies into RAM; `false` where not all of it is RAM of one block, and nothing is changed.
    pub fn store(&self, gpa: u64, data: &[u8]) -> bool {
        self.find(gpa).is_some_and(|(part, offset)| part.shared.write(offset, data))
    }

    /// Sets bits of the aligned 8 bytes at `gpa`; `false` where there is no RAM.
    pub fn set_bits(&self, gpa: u64, bits: u64) -> bool {
        self.find(gpa).is_some_and(|(part, offset)| part.shared.set_bits(offset, bits))
    }

    /// The machine has ended: [`Memory`] calls fail from now on.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    fn open(&self, op: &'static str) -> Result<()> {
        match self.closed.load(Ordering::Acquire) {
            true => Err(Error::new(ErrorKind::Gone, op, "the machine has ended")),
            false => Ok(()),
        }
    }

    /// Whether these bytes all lie in one block.
    pub fn holds(&self, gpa: u64, bytes: u64) -> bool {
        self.find(gpa).is_some_and(|(part, offset)| bytes <= part.bytes - offset)
    }
}

impl Part {
    fn region(&self) -> Region {
        let block = Some(BlockRef { name: self.name.clone(), offset: 0 });
        Region { start: Gpa(self.start), end: Gpa(self.start + self.bytes), kind: RegionKind::Ram, block }
    }
}

fn outside(op: &'static str, gpa: Gpa, bytes: usize) -> Error {
    Error::new(ErrorKind::NotFound, op, format!("{bytes} bytes at {gpa} are not all in one block of RAM"))
}

impl Memory for Ram {
    fn map(&self) -> Arc<MemoryMap> {
        self.map.clone()
    }

    fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = self
            .blocks
            .iter()
            .map(|part| Block {
                name: part.name.clone(),
                bytes: part.bytes,
                file: part.shared.file().clone(),
            })
            .collect();
        blocks.sort_by(|a, b| a.name.cmp(&b.name));
        blocks
    }

    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<usize> {
        self.open("read memory")?;
        match buf.is_empty() || self.load(gpa.0, buf) {
            true => Ok(buf.len()),
            false => Err(outside("read memory", gpa, buf.len())),
        }
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<usize> {
        self.open("write memory")?;
        match data.is_empty() || self.store(gpa.0, data) {
            true => Ok(data.len()),
            false => Err(outside("write memory", gpa, data.len())),
        }
    }

    fn lend(&self, gpa: Gpa, bytes: usize, take: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.open("read memory")?;
        match self.find(gpa.0) {
            Some((part, offset)) if part.shared.lend(offset, bytes, take) => Ok(true),
            _ => Err(outside("read memory", gpa, bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use vmtree_api::Span;

    #[test]
    fn the_layout_has_a_hole() {
        for (bytes, low) in
            [(8 << 20, 6 << 20), (64 << 20, 48 << 20), (10 << 20, 6 << 20), (8 << 30, 3 << 30)]
        {
            let ram = Ram::new(bytes).unwrap();
            let map = ram.map();
            assert_eq!(map.ram_bytes(), bytes);
            assert_eq!(map.ram_end(), HIGH + bytes - low);
            assert_eq!(map.at(Gpa(low)), Span::Hole(Some(Gpa(APIC_BASE))));
            assert!(matches!(map.at(Gpa(APIC_BASE)), Span::Region(region) if !region.holds_data()));
        }
    }

    #[test]
    fn reads_writes_lends_and_shares_the_same_bytes() {
        let ram = Ram::new(8 << 20).unwrap();
        let gpa = Gpa(HIGH + 0x1ffc);
        assert_eq!(ram.write(gpa, b"deadbeef").unwrap(), 8);
        let mut buf = [0; 8];
        assert_eq!(ram.read(gpa, &mut buf).unwrap(), 8);
        assert_eq!(&buf, b"deadbeef");
        let mut lent = Vec::new();
        assert!(ram.lend(gpa, 8, &mut |bytes| lent.extend_from_slice(bytes)).unwrap());
        assert_eq!(lent, buf);
        let blocks = ram.blocks();
        let names: Vec<&str> = blocks.iter().map(|block| &*block.name).collect();
        assert_eq!(names, ["high", "low"]);
        blocks[0].file.read_exact_at(&mut buf[..4], 0x2000).unwrap();
        assert_eq!(&buf[..4], b"beef");
    }

    #[test]
    fn what_is_no_ram_is_refused_and_changes_nothing() {
        let ram = Ram::new(8 << 20).unwrap();
        let end = 6 << 20;
        for gpa in [end - 1, end, APIC_BASE, HIGH - 1, HIGH + (2 << 20) - 1, u64::MAX] {
            assert_eq!(ram.write(Gpa(gpa), &[1, 2]).unwrap_err().kind(), ErrorKind::NotFound, "{gpa:#x}");
            assert_eq!(ram.read(Gpa(gpa), &mut [0; 2]).unwrap_err().kind(), ErrorKind::NotFound);
            assert!(ram.lend(Gpa(gpa), 2, &mut |_| ()).is_err());
        }
        let mut last = [9];
        ram.read(Gpa(end - 1), &mut last).unwrap();
        assert_eq!(last, [0]);
        assert_eq!(ram.read(Gpa(u64::MAX), &mut []).unwrap(), 0);
    }
}
