//! Linear memory as a vCPU reaches it: translation, then physical memory, across page borders too.

use super::grants::Trap;
use super::mmu::{Mode, Tlb, Use, Want};
use super::walk::{Attempt, GRANTED};
use super::{Bus, Cpu, Exception};
use crate::phys::World;

/// The memory side of one vCPU.
pub struct Linear<'a> {
    /// Which one.
    pub vcpu: usize,
    /// What it remembers of its page tables.
    pub tlb: &'a mut Tlb,
    /// What it is intercepted by.
    pub trap: &'a mut Trap,
    /// What lies behind it.
    pub world: &'a mut World,
}

/// Where the bytes of an access lie: place and length of the part in the first page, and the place of the rest, if
/// there is one.
struct Pieces {
    first: u64,
    split: usize,
    second: Option<u64>,
}

/// A read that is only a read.
const fn reading(mode: Mode) -> Want {
    Want { paging: Use::Read, slat: Use::Read, mode }
}

/// Whether an access does not cross a page border.
const fn in_a_page(address: u64, bytes: usize) -> bool {
    (address & 0xfff) as usize + bytes <= 0x1000
}

impl Linear<'_> {
    /// The place of `bytes` bytes inside one page.
    #[inline]
    fn locate(&mut self, cpu: &Cpu, want: Want, address: u64, bytes: usize) -> Result<u64, Exception> {
        match self.tlb.find(&cpu.regs, want, address) {
            Some(place) => Ok(place),
            None => self.walk(cpu, Attempt { address, bytes, want }),
        }
    }

    fn pieces(&mut self, cpu: &Cpu, want: Want, address: u64, bytes: usize) -> Result<Pieces, Exception> {
        let split = bytes.min(0x1000 - (address & 0xfff) as usize);
        let first = self.locate(cpu, want, address, split)?;
        let second = if split < bytes {
            Some(self.locate(cpu, want, address.wrapping_add(split as u64), bytes - split)?)
        } else {
            None
        };
        Ok(Pieces { first, split, second })
    }

    #[inline]
    fn load(&mut self, at: u64, buf: &mut [u8]) {
        match at & GRANTED {
            0 => self.world.read(self.vcpu, at, buf),
            _ => self.read_granted(at, buf),
        }
    }

    #[inline]
    fn store(&mut self, at: u64, data: &[u8]) {
        match at & GRANTED {
            0 => self.world.write(self.vcpu, at, data),
            _ => self.write_granted(at, data.len()),
        }
    }

    #[inline]
    fn read_wanted(&mut self, cpu: &Cpu, want: Want, address: u64, buf: &mut [u8]) -> Result<(), Exception> {
        if in_a_page(address, buf.len()) {
            let at = self.locate(cpu, want, address, buf.len())?;
            self.load(at, buf);
            return Ok(());
        }
        let pieces = self.pieces(cpu, want, address, buf.len())?;
        let (head, tail) = buf.split_at_mut(pieces.split);
        self.load(pieces.first, head);
        if let Some(second) = pieces.second {
            self.load(second, tail);
        }
        Ok(())
    }

    fn copy_in(&mut self, pieces: &Pieces, data: &[u8]) {
        let (head, tail) = data.split_at(pieces.split);
        self.store(pieces.first, head);
        if let Some(second) = pieces.second {
            self.store(second, tail);
        }
    }

    /// Reads in a given mode.
    ///
    /// # Errors
    /// The exception the access raises.
    pub fn read_as(&mut self, cpu: &Cpu, mode: Mode, address: u64, buf: &mut [u8]) -> Result<(), Exception> {
        self.read_wanted(cpu, reading(mode), address, buf)
    }

    /// Writes in a given mode: all, or nothing on an exception.
    ///
    /// # Errors
    /// The exception the access raises.
    pub fn write_as(&mut self, cpu: &Cpu, mode: Mode, address: u64, data: &[u8]) -> Result<(), Exception> {
        let want = Want { paging: Use::Write, slat: Use::Write, mode };
        if in_a_page(address, data.len()) {
            let at = self.locate(cpu, want, address, data.len())?;
            self.store(at, data);
            return Ok(());
        }
        let pieces = self.pieces(cpu, want, address, data.len())?;
        self.copy_in(&pieces, data);
        Ok(())
    }

    /// Writes several parts: all of them, or nothing on an exception.
    ///
    /// # Errors
    /// The exception an access raises.
    pub fn write_parts(&mut self, cpu: &Cpu, mode: Mode, parts: &[(u64, &[u8])]) -> Result<(), Exception> {
        let want = Want { paging: Use::Write, slat: Use::Write, mode };
        let find = |(address, data): &(u64, &[u8])| self.pieces(cpu, want, *address, data.len());
        let pieces = parts.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        pieces.iter().zip(parts).for_each(|(pieces, (_, data))| self.copy_in(pieces, data));
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
        let want = Want { paging: Use::Execute, slat: Use::Execute, mode: Mode::of(cpu) };
        let at = self.locate(cpu, want, address, buf.len())?;
        self.load(at, buf);
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
        let want = Want { paging: Use::Write, slat: Use::Read, mode: Mode::of(cpu) };
        self.read_wanted(cpu, want, address, buf)
    }
}
