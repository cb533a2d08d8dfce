//! A PV domain's memory: that of any other, but written only while the domain stands still.

use std::sync::Arc;

use vmtree_api::{Block, Gpa, MachineMemory, Memory, MemoryMap, Result};

use crate::memory::DomainMemory;
use crate::owner::Owner;

const WRITE: &str = "write memory";

/// The memory of a paravirtual domain.
pub struct PvMemory {
    memory: Arc<DomainMemory>,
    owner: Arc<Owner>,
}

impl PvMemory {
    /// Of a domain that `owner` can pause.
    #[must_use]
    pub fn new(memory: Arc<DomainMemory>, owner: Arc<Owner>) -> Self {
        Self { memory, owner }
    }
}

impl Memory for PvMemory {
    fn map(&self) -> Arc<MemoryMap> {
        self.memory.map()
    }

    fn blocks(&self) -> Vec<Block> {
        self.memory.blocks()
    }

    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<usize> {
        self.memory.read(gpa, buf)
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<usize> {
        let data = data.to_vec();
        // A page that is mapped to be written can't become a page table meanwhile: the guest's kernel would not survive it.
        self.owner
            .ask(WRITE, move |world| world.paused(WRITE, |world| world.shared.memory.write_once(gpa, &data)))
    }

    fn lend(&self, gpa: Gpa, bytes: usize, take: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.memory.lend(gpa, bytes, take)
    }

    fn machine(&self) -> Option<&dyn MachineMemory> {
        self.memory.machine()
    }
}
