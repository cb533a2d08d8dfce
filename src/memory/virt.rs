//! Virtual memory through a vCPU's page tables: file offset = guest-virtual address without its top bit.

use vmtree_api::x86::bits::{EFER_LMA, EFER_NXE};
use vmtree_api::x86::{Fault, PagingMode, Walk, walk};
use vmtree_api::{Gpa, Gva};

use super::GuestMemory;
use crate::error::{FsError, FsResult};

/// One address space at one instant.
pub struct VirtualMemory<'a> {
    memory: &'a GuestMemory,
    mode: PagingMode,
}

/// The address at a file offset: offsets have 63 bits, so bit 63 repeats bit 62, which is right for every canonical
/// address.
#[must_use]
pub fn offset_to_gva(offset: u64) -> Gva {
    Gva(((offset << 1) as i64 >> 1) as u64)
}

impl<'a> VirtualMemory<'a> {
    /// The address space that `mode` selects.
    #[must_use]
    pub fn new(memory: &'a GuestMemory, mut mode: PagingMode) -> Self {
        // A paravirtual guest has no EFER to be asked for: its tables are always those of long mode.
        if memory.machine().is_some() {
            mode.efer |= EFER_LMA | EFER_NXE;
        }
        Self { memory, mode }
    }

    /// Where `gva` lies, or why it lies nowhere.
    ///
    /// # Errors
    /// A page table could not be read.
    pub fn translate(&self, gva: Gva) -> FsResult<Result<Walk, Fault>> {
        let Some(machine) = self.memory.machine() else {
            return walk(&self.mode, gva, |gpa| self.entry(gpa));
        };
        let mut found = walk(&self.mode, gva, |at| self.entry(machine.gpa(at)?))?;
        if let Ok(walk) = &mut found {
            walk.gpa = machine.gpa(walk.gpa)?;
        }
        Ok(found)
    }

    fn entry(&self, gpa: Gpa) -> FsResult<u64> {
        let mut entry = [0; 8];
        let mut got = 0;
        self.memory.read(gpa.0, entry.len(), &mut |bytes| {
            got = bytes.len();
            if let Some(to) = entry.get_mut(..got) {
                to.copy_from_slice(bytes);
            }
        })?;
        if got < entry.len() {
            return Err(FsError::NoMemory(format!("the page table at {gpa} lies outside memory")));
        }
        Ok(u64::from_le_bytes(entry))
    }

    /// Hands the bytes from `gva` on to `take`, once: `len` of them, or fewer where no page is mapped.
    ///
    /// # Errors
    /// Not even the first byte could be read.
    pub fn read(&self, gva: Gva, len: usize, take: &mut dyn FnMut(&[u8])) -> FsResult<()> {
        let mut all = Vec::with_capacity(len.min(1 << 20));
        self.each_page(gva, len, &mut |gpa, range| {
            let wanted = range.len();
            let before = all.len();
            self.memory.read(gpa.0, wanted, &mut |bytes| all.extend_from_slice(bytes))?;
            match all.len() - before {
                0 => Err(FsError::NoMemory(format!("nothing can be read at gpa {gpa}"))),
                got => Ok(got),
            }
        })?;
        take(&all);
        Ok(())
    }

    /// Writes `data` from `gva` on and returns how many bytes were written.
    ///
    /// # Errors
    /// Nothing was written.
    pub fn write(&self, gva: Gva, data: &[u8]) -> FsResult<usize> {
        self.each_page(gva, data.len(), &mut |gpa, range| {
            self.memory.write(gpa.0, data.get(range).unwrap_or_default())
        })
    }

    /// Calls `each` for every page of a range until one is not done whole, and returns how many bytes were done.
    fn each_page(
        &self,
        gva: Gva,
        len: usize,
        each: &mut dyn FnMut(Gpa, std::ops::Range<usize>) -> FsResult<usize>,
    ) -> FsResult<usize> {
        super::each_page(gva.0, len, |at, range| match self.translate(Gva(at))? {
            Ok(found) => each(found.gpa, range),
            Err(fault) => Err(unmapped(Gva(at), fault)),
        })
    }
}

/// Why an address lies nowhere, in words.
fn unmapped(gva: Gva, fault: Fault) -> FsError {
    FsError::NoMemory(format!("{gva} is not mapped: {}", fault_in_words(fault)))
}

/// A fault of the walk in the manual's words.
#[must_use]
pub fn fault_in_words(fault: Fault) -> String {
    match fault {
        Fault::NonCanonical => "the address is not canonical".to_owned(),
        Fault::NotPresent(level) => format!("the level {level} entry is not present"),
        Fault::Reserved(level) => format!("the level {level} entry has a reserved bit set"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_canonical_address_has_an_offset() {
        for gva in [0, 0x1000, 0x7fff_ffff_ffff, 0xffff_8000_0000_0000, 0xffff_ffff_8100_0000, u64::MAX] {
            assert_eq!(offset_to_gva(gva & 0x7fff_ffff_ffff_ffff), Gva(gva), "{gva:#x}");
        }
    }
}
