//! Physical memory: its map, and how it is read and written.

use std::fs::File;
use std::sync::Arc;

use crate::{Gpa, Result};

/// What lies in a region of the physical address space.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RegionKind {
    /// Memory that the guest reads and writes.
    Ram,
    /// Memory that the guest only reads.
    Rom,
    /// Device registers: reading them has effects, so we don't.
    Mmio,
}

/// Where a region lies in a host-backed block of RAM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BlockRef {
    /// The block's name.
    pub name: Arc<str>,
    /// The offset of the region's first byte in the block.
    pub offset: u64,
}

/// A contiguous piece of the physical address space.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Region {
    /// The address of its first byte.
    pub start: Gpa,
    /// The address behind its last byte.
    pub end: Gpa,
    /// What it is.
    pub kind: RegionKind,
    /// The block behind it, where there is one.
    pub block: Option<BlockRef>,
}

impl Region {
    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether its bytes can be read without an effect on the guest.
    #[must_use]
    pub fn holds_data(&self) -> bool {
        self.kind != RegionKind::Mmio
    }
}

/// What is found at an address: a region's rest, or nothing up to the next region.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Span<'a> {
    /// A region that covers the address.
    Region(&'a Region),
    /// A hole that ends before this address; `None` if nothing follows.
    Hole(Option<Gpa>),
}

/// The physical address space at one moment: sorted regions that don't overlap.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct MemoryMap {
    generation: u64,
    regions: Vec<Region>,
}

impl MemoryMap {
    /// A map of these regions; `generation` grows with every change of a VM's map. Regions are sorted here; empty
    /// ones and those that overlap an earlier one are left out.
    #[must_use]
    pub fn new(generation: u64, mut regions: Vec<Region>) -> Self {
        regions.sort_by_key(|region| region.start);
        let mut sorted: Vec<Region> = Vec::with_capacity(regions.len());
        for region in regions {
            let free = sorted.last().is_none_or(|last| last.end <= region.start);
            if free && region.start < region.end {
                sorted.push(region);
            }
        }
        Self { generation, regions: sorted }
    }

    /// Grows with every change.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The regions in ascending order.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// What lies at `gpa`.
    #[must_use]
    pub fn at(&self, gpa: Gpa) -> Span<'_> {
        let next = self.regions.partition_point(|region| region.end <= gpa);
        match self.regions.get(next) {
            Some(region) if region.start <= gpa => Span::Region(region),
            Some(region) => Span::Hole(Some(region.start)),
            None => Span::Hole(None),
        }
    }

    /// The end of the highest RAM region, which is the size of `mem`; 0 without RAM.
    #[must_use]
    pub fn ram_end(&self) -> u64 {
        self.ram().map(|region| region.end.0).max().unwrap_or(0)
    }

    /// All RAM in bytes.
    #[must_use]
    pub fn ram_bytes(&self) -> u64 {
        self.ram().map(Region::bytes).sum()
    }

    fn ram(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter().filter(|region| region.kind == RegionKind::Ram)
    }
}

/// A host-backed block of RAM, shown as `ram/NAME`.
#[derive(Clone, Debug)]
pub struct Block {
    /// Its name; unique within the VM, a plain file name.
    pub name: Arc<str>,
    /// Its length in bytes.
    pub bytes: u64,
    /// The file whose pages are the guest's memory, open for reading and writing.
    pub file: Arc<File>,
}

/// Physical memory. Every call is prompt and may be made from several threads at once.
///
/// The caller splits a range at the borders of [`MemoryMap`]: each call below stays inside one region that holds
/// data ([`Region::holds_data`]) of the current map. A range that does not is [`crate::ErrorKind::NotFound`].
pub trait Memory: Send + Sync {
    /// The map now; cached by the driver, so cheap.
    fn map(&self) -> Arc<MemoryMap>;

    /// The blocks that can be had as files, in the order of their names; none where memory is not host-backed.
    fn blocks(&self) -> Vec<Block>;

    /// Copies memory from `gpa` on into `buf` and returns how many bytes it copied: less than asked for only where
    /// the rest can't be read. An empty `buf` is `Ok(0)`.
    ///
    /// # Errors
    /// Not even the first byte could be read.
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<usize>;

    /// Copies `data` into memory from `gpa` on and returns how many bytes it copied, as [`Memory::read`]. ROM is
    /// written too where the host can.
    ///
    /// # Errors
    /// Not even the first byte could be written; then nothing is changed.
    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<usize>;

    /// Lends the bytes at `gpa` to `take` straight from a host mapping, and returns whether it did; `Ok(false)`
    /// where the driver has none there. The guest may write them meanwhile, so `take` does nothing with them
    /// but hand them to the operating system.
    ///
    /// # Errors
    /// As [`Memory::read`].
    fn lend(&self, gpa: Gpa, bytes: usize, take: &mut dyn FnMut(&[u8])) -> Result<bool>;

    /// The way back from the machine's addresses, for a paravirtual guest: its page tables and CR3 hold those. `None` for
    /// every other guest.
    fn machine(&self) -> Option<&dyn MachineMemory> {
        None
    }
}

/// Where a paravirtual guest's memory lies in the machine. Such a guest has no EFER to read: it is in long mode.
pub trait MachineMemory: Send + Sync {
    /// The guest-physical address of what lies at this address of the machine.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] where the guest has no memory there.
    fn gpa(&self, machine: Gpa) -> Result<Gpa>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(start: u64, end: u64, kind: RegionKind) -> Region {
        Region { start: Gpa(start), end: Gpa(end), kind, block: None }
    }

    #[test]
    fn finds_regions_and_holes() {
        let high = region(0x4000, 0x6000, RegionKind::Ram);
        let low = region(0, 0x1000, RegionKind::Ram);
        let mmio = region(0x1000, 0x2000, RegionKind::Mmio);
        let map = MemoryMap::new(1, vec![high.clone(), low.clone(), mmio.clone()]);
        assert_eq!(map.at(Gpa(0xfff)), Span::Region(&low));
        assert_eq!(map.at(Gpa(0x1000)), Span::Region(&mmio));
        assert_eq!(map.at(Gpa(0x2000)), Span::Hole(Some(Gpa(0x4000))));
        assert_eq!(map.at(Gpa(0x6000)), Span::Hole(None));
        assert_eq!((map.ram_end(), map.ram_bytes()), (0x6000, 0x3000));
    }

    #[test]
    fn an_empty_map_has_no_end() {
        let map = MemoryMap::default();
        assert_eq!(map.ram_end(), 0);
        assert_eq!(map.at(Gpa(0)), Span::Hole(None));
    }

    #[test]
    fn overlapping_and_empty_regions_are_left_out() {
        let map = MemoryMap::new(
            0,
            vec![
                region(0, 0x2000, RegionKind::Ram),
                region(0x1000, 0x3000, RegionKind::Rom),
                region(0x5000, 0x5000, RegionKind::Ram),
            ],
        );
        assert_eq!(map.regions().len(), 1);
    }
}
