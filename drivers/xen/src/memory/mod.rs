//! The domain's memory: its map, and access by live mappings.

mod layout;
mod mappings;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use vmtree_api::{Block, Error, ErrorKind, Gfn, Gpa, MachineMemory, Memory, MemoryMap, Result};

use crate::error::{self, is, refused};
use crate::hypervisor::{DomainInfo, Frames, MachineTable};
use crate::pv::Pv;
use crate::pv::frames::PvFrames;
pub use mappings::Mappings;

const OP: &str = "read the memory map";
const WRITE: &str = "write memory";
/// What else a PV guest does not let happen.
const TABLES: &str = " to be written: page tables and descriptor tables of a PV guest are Xen's to change";

/// The memory of a domain.
pub struct DomainMemory {
    frames: Arc<dyn Frames>,
    /// Of a PV domain.
    m2p: Option<Arc<dyn MachineTable>>,
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
        Self { frames, m2p: None, mappings, map, ours, gone: AtomicBool::new(false) }
    }

    /// The same of a paravirtual domain, whose frames of the machine these are.
    #[must_use]
    pub fn paravirtual(machine: Arc<dyn Frames>, pv: Pv, budget: u64) -> Self {
        let frames = Arc::new(PvFrames::new(machine, pv.shared_info));
        Self { m2p: Some(pv.m2p), ..Self::new(frames, budget) }
    }

    /// Looks where memory lies, up to a frame, and forgets what was mapped.
    ///
    /// # Errors
    /// Xen does not tell.
    pub fn refresh(&self, highest: u64, info: &DomainInfo) -> Result<()> {
        let runs = layout::scan(&*self.frames, highest, info.pages).map_err(|error| {
            let why = if self.m2p.is_some() && is(&error, error::number::EBUSY) {
                "the guest has not said yet where its frames lie: its kernel is still starting"
            } else {
                "Xen does not tell where memory lies"
            };
            refused(OP, why, error)
        })?;
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

    /// Writes the memory of a PV domain that stands still.
    ///
    /// # Errors
    /// As [`Memory::write`].
    pub fn write_once(&self, gpa: Gpa, data: &[u8]) -> Result<usize> {
        self.alive(WRITE)?;
        self.mappings.write_once(gpa.0, data).map_err(|error| self.unmapped(WRITE, gpa, error))
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
        let pv = if self.m2p.is_some() && op == WRITE { TABLES } else { "" };
        Error::new(kind, op, format!("there is no memory at {gpa} that Xen would map{pv}")).caused_by(error)
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
        self.alive(WRITE)?;
        self.mappings.write(gpa.0, data).map_err(|error| self.unmapped(WRITE, gpa, error))
    }

    fn lend(&self, _gpa: Gpa, _bytes: usize, _take: &mut dyn FnMut(&[u8])) -> Result<bool> {
        // FUSE's device takes its replies by pinning their pages, and pages of another domain can't be pinned.
        Ok(false)
    }

    fn machine(&self) -> Option<&dyn MachineMemory> {
        self.m2p.as_ref().map(|_| self as &dyn MachineMemory)
    }
}

impl MachineMemory for DomainMemory {
    fn gpa(&self, machine: Gpa) -> Result<Gpa> {
        const OP: &str = "find a frame of the machine";
        self.alive(OP)?;
        let frame = machine.gfn().0;
        let none = || {
            Error::new(
                ErrorKind::NotFound,
                OP,
                format!("the guest has no memory at {machine} of the machine"),
            )
        };
        let m2p = self.m2p.as_ref().ok_or_else(none)?;
        let own = m2p.own(frame).map_err(|error| none().caused_by(error))?;
        let gpa = Gfn(own).gpa().ok_or_else(none)?;
        // Each table is the guest's word; where they agree, it is this memory.
        match self.mappings.machine(own) {
            Ok(Some(found)) if found == frame => gpa.checked_add(machine.page_offset()).ok_or_else(none),
            Ok(_) => Err(none()),
            Err(error) => Err(self.unmapped(OP, gpa, error)),
        }
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
