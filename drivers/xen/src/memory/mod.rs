//! The domain's memory: its map, and access by live mappings.

mod layout;
mod mappings;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use vmtree_api::{Block, Error, ErrorKind, Gpa, Memory, MemoryMap, Result};

use crate::error::{self, refused};
use crate::hypervisor::{DomainInfo, Frames};
pub use mappings::Mappings;

const OP: &str = "read the memory map";

/// The memory of a domain.
pub struct DomainMemory {
    frames: Arc<dyn Frames>,
    mappings: Mappings,
    map: Mutex<Arc<MemoryMap>>,
    /// Frames that the driver added.
    ours: Mutex<Vec<u64>>,
    gone: AtomicBool,
}

impl DomainMemory {
    /// Of a domain, with at most `budget` bytes mapped; the map is empty before the first [`DomainMemory::refresh`].
    #[must_use]
    pub fn new(frames: Arc<dyn Frames>, budget: u64) -> Self {
        let mappings = Mappings::new(Arc::clone(&frames), budget);
        let (map, ours) = (Mutex::default(), Mutex::default());
        Self { frames, mappings, map, ours, gone: AtomicBool::new(false) }
    }

    /// Looks where memory lies, up to a frame, and forgets what was mapped.
    ///
    /// # Errors
    /// Xen does not tell.
    pub fn refresh(&self, highest: u64, info: &DomainInfo) -> Result<()> {
        let runs = layout::scan(&*self.frames, highest, info.pages)
            .map_err(|error| refused(OP, "Xen does not tell where memory lies", error))?;
        let regions = layout::regions(&runs, &self.ours.lock(), info.devices);
        let mut map = self.map.lock();
        let generation = map.generation() + 1;
        let new = MemoryMap::new(generation, regions);
        if new.regions() != map.regions() {
            *map = Arc::new(new);
        }
        drop(map);
        self.mappings.drop_all();
        Ok(())
    }

    /// Frames that the driver has added beyond the guest's own.
    pub fn set_ours(&self, frames: Vec<u64>) {
        *self.ours.lock() = frames;
        self.mappings.drop_all();
    }

    /// The domain is gone, and so is its memory.
    pub fn end(&self) {
        self.gone.store(true, Ordering::Release);
        self.mappings.drop_all();
    }

    /// What is mapped, whether the guest knows of it or not.
    #[must_use]
    pub fn mappings(&self) -> &Mappings {
        &self.mappings
    }

    /// Why memory could not be had: a domain that is being destroyed has none.
    fn unmapped(&self, op: &'static str, gpa: Gpa, error: std::io::Error) -> Error {
        if !self.frames.alive() {
            self.end();
            return error::gone(op);
        }
        let kind = match error.raw_os_error() {
            Some(error::number::EINVAL | error::number::ENOENT) => ErrorKind::NotFound,
            _ => ErrorKind::Io,
        };
        Error::new(kind, op, format!("there is no memory at {gpa} that Xen would map")).caused_by(error)
    }

    fn alive(&self, op: &'static str) -> Result<()> {
        if self.gone.load(Ordering::Acquire) { Err(error::gone(op)) } else { Ok(()) }
    }
}

impl Memory for DomainMemory {
    fn map(&self) -> Arc<MemoryMap> {
        Arc::clone(&self.map.lock())
    }

    fn blocks(&self) -> Vec<Block> {
        // The pages belong to the domain; no file of this host has them.
        Vec::new()
    }

    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<usize> {
        const OP: &str = "read memory";
        self.alive(OP)?;
        self.mappings.read(gpa.0, buf).map_err(|error| self.unmapped(OP, gpa, error))
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<usize> {
        const OP: &str = "write memory";
        self.alive(OP)?;
        self.mappings.write(gpa.0, data).map_err(|error| self.unmapped(OP, gpa, error))
    }

    fn lend(&self, _gpa: Gpa, _bytes: usize, _take: &mut dyn FnMut(&[u8])) -> Result<bool> {
        // FUSE's device takes its replies by pinning their pages, and pages of another domain can't be pinned.
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Ram;
    use std::sync::atomic::Ordering;

    #[test]
    fn memory_of_a_domain_that_is_destroyed_is_gone() {
        let ram = Arc::new(Ram::new(&[0..0x10, 0x20..0x30]));
        let memory = DomainMemory::new(Arc::clone(&ram) as Arc<dyn Frames>, 1 << 20);
        let read = |gpa| memory.read(Gpa(gpa), &mut [0]).map_err(|error| error.kind());
        assert_eq!((read(0), read(0x50_0000)), (Ok(1), Err(ErrorKind::NotFound)));
        ram.dead.store(true, Ordering::Relaxed);
        assert_eq!((read(0x50_0000), read(0)), (Err(ErrorKind::Gone), Err(ErrorKind::Gone)));
        assert_eq!(ram.alive(), 0);
    }
}
