//! Linear memory as a vCPU reaches it: translation, then physical memory, across page borders too.

use super::mmu::{Mode, Tlb, Use};
use super::{Bus, Cpu, Exception};
use crate::phys::World;

/// The memory side of one vCPU.
pub struct Linear<'a> {
    /// Which one.
    pub vcpu: usize,
    /// What it remembers of its page tables.
    pub tlb: &'a mut Tlb,
    /// What lies behind it.
    pub world: &'a mut World,
}

/// Where the bytes of an access lie: physical address and length of the part in the first page, and the physical
/// address of the rest, if there is one.
struct Pieces {
    first: u64,
    split: usize,
    second: Option<u64>,
}

impl Linear<'_> {
    fn pieces(
        &mut self,
        cpu: &Cpu,
        (mode, wanted): (Mode, Use),
        address: u64,
        bytes: usize,
    ) -> Result<Pieces, Exception> {
        let first = self.tlb.translate(self.world, cpu, (self.vcpu, address), wanted, mode)?;
        let split = bytes.min(0x1000 - (address & 0xfff) as usize);
        let second = if split < bytes {
            let next = address.wrapping_add(split as u64);
            Some(self.tlb.translate(self.world, cpu, (self.vcpu, next), wanted, mode)?)
        } else {
            None
        };
        Ok(Pieces { first, split, second })
    }

    fn copy_out(&mut self, pieces: &Pieces, buf: &mut [u8]) {
        let (head, tail) = buf.split_at_mut(pieces.split);
        self.world.read(self.vcpu, pieces.first, head);
        if let Some(second) = pieces.second {
            self.world.read(self.vcpu, second, tail);
        }
    }

    /// Reads in a given mode.
    ///
    /// # Errors
    /// The exception the access raises.
    pub fn read_as(&mut self, cpu: &Cpu, mode: Mode, address: u64, buf: &mut [u8]) -> Result<(), Exception> {
        let pieces = self.pieces(cpu, (mode, Use::Read), address, buf.len())?;
        self.copy_out(&pieces, buf);
        Ok(())
    }

    /// Writes in a given mode: all, or nothing on an exception.
    ///
    /// # Errors
    /// The exception the access raises.
    pub fn write_as(&mut self, cpu: &Cpu, mode: Mode, address: u64, data: &[u8]) -> Result<(), Exception> {
        let pieces = self.pieces(cpu, (mode, Use::Write), address, data.len())?;
        let (head, tail) = data.split_at(pieces.split);
        self.world.write(self.vcpu, pieces.first, head);
        if let Some(second) = pieces.second {
            self.world.write(self.vcpu, second, tail);
        }
        Ok(())
    }

    /// Reads 8 bytes on behalf of the CPU itself.
    ///
    /// # Errors
    /// The exception the access raises.
    pub fn read_u64(&mut self, cpu: &Cpu, address: u64) -> Result<u64, Exception> {
        let mut bytes = [0; 8];
        self.read_as(cpu, Mode::Implicit, address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Fetches code from inside one page.
    ///
    /// # Errors
    /// The exception the fetch raises.
    pub fn fetch(&mut self, cpu: &Cpu, address: u64, buf: &mut [u8]) -> Result<(), Exception> {
        let mode = Mode::of(cpu);
        let gpa = self.tlb.translate(self.world, cpu, (self.vcpu, address), Use::Execute, mode)?;
        self.world.read(self.vcpu, gpa, buf);
        Ok(())
    }
}

impl Bus for Linear<'_> {
    fn read(&mut self, cpu: &Cpu, address: u64, buf: &mut [u8]) -> Result<(), Exception> {
        self.read_as(cpu, Mode::of(cpu), address, buf)
    }

    fn write(&mut self, cpu: &Cpu, address: u64, data: &[u8]) -> Result<(), Exception> {
        self.write_as(cpu, Mode::of(cpu), address, data)
    }

    fn read_for_write(&mut self, cpu: &Cpu, address: u64, buf: &mut [u8]) -> Result<(), Exception> {
        let pieces = self.pieces(cpu, (Mode::of(cpu), Use::Write), address, buf.len())?;
        self.copy_out(&pieces, buf);
        Ok(())
    }
}
