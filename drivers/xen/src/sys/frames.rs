//! The domain's memory, mapped into this process.

use std::ffi::c_void;
use std::io::{Error, Result};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use xenforeignmemory_sys as c;

use super::call::{BATCH, Call};
use super::handle;
use crate::hypervisor::{Frames, Mapped};

const PAGE: usize = 4096;
const WRITABLE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// The handle of libxenforeignmemory.
pub struct Memory(NonNull<c::xenforeignmemory_handle>);

// SAFETY: on Linux the handle is a descriptor and settings that no call changes; each call is made under a lock.
unsafe impl Send for Memory {}

impl Memory {
    /// Opens one.
    ///
    /// # Errors
    /// As the library says.
    pub fn open() -> Result<Arc<Mutex<Self>>> {
        // SAFETY: the logger is there for ever, and the library does not write to it.
        let memory = unsafe { c::xenforeignmemory_open(handle::silent().cast(), 0) };
        let memory = NonNull::new(memory).ok_or_else(Error::last_os_error)?;
        Ok(Arc::new(Mutex::new(Self(memory))))
    }
}

/// Maps frames of a domain side by side, and tells of each whether it is there.
///
/// # Errors
/// As the library says.
pub fn map(
    memory: &Arc<Mutex<Memory>>,
    domid: u32,
    prot: i32,
    frames: &[u64],
) -> Result<(Mapping, Vec<bool>)> {
    let mut errors = vec![0; frames.len()];
    let open = memory.lock().unwrap_or_else(PoisonError::into_inner);
    let (handle, at, told) = (open.0.as_ptr(), frames.as_ptr(), errors.as_mut_ptr());
    // SAFETY: both rows have as many numbers as are told.
    let base = unsafe { c::xenforeignmemory_map(handle, domid, prot, frames.len(), at, told) };
    let base = NonNull::new(base).ok_or_else(Error::last_os_error)?;
    drop(open);
    let mapping =
        Mapping { memory: Arc::clone(memory), base, pages: frames.len(), writable: prot == WRITABLE };
    Ok((mapping, errors.iter().map(|error| *error == 0).collect()))
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: no mapping is left: each holds the handle.
        unsafe { c::xenforeignmemory_close(self.0.as_ptr()) };
    }
}

/// The handle of libxencall, on whichever thread.
struct Calls(Call);

// SAFETY: the library's handle is bound to no thread; each call is made under a lock.
unsafe impl Send for Calls {}

/// The way to one domain's memory.
pub struct Foreign {
    memory: Arc<Mutex<Memory>>,
    calls: Mutex<Calls>,
    domid: u32,
    /// How they are mapped to stay.
    prot: i32,
}

impl Foreign {
    /// Opens it; of a PV domain, what stays mapped can be read alone.
    ///
    /// # Errors
    /// As the libraries say.
    pub fn open(domid: u32, paravirtual: bool) -> Result<Self> {
        let prot = if paravirtual { libc::PROT_READ } else { WRITABLE };
        Ok(Self { prot, memory: Memory::open()?, calls: Mutex::new(Calls(Call::open()?)), domid })
    }
}

impl Frames for Foreign {
    fn map(&self, frames: &[u64]) -> Result<(Box<dyn Mapped>, Vec<bool>)> {
        let (mapping, there) = map(&self.memory, self.domid, self.prot, frames)?;
        Ok((Box::new(mapping), there))
    }

    fn map_to_write(&self, frames: &[u64]) -> Result<(Box<dyn Mapped>, Vec<bool>)> {
        let (mapping, there) = map(&self.memory, self.domid, WRITABLE, frames)?;
        Ok((Box::new(mapping), there))
    }

    fn present(&self, frames: &[u64], there: &mut [bool]) -> Result<()> {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        for (frames, there) in frames.chunks(BATCH).zip(there.chunks_mut(BATCH)) {
            calls.0.present(self.domid, frames, there)?;
        }
        Ok(())
    }

    fn alive(&self) -> bool {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).0.alive(self.domid)
    }

    fn told(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}

/// Frames side by side.
pub struct Mapping {
    memory: Arc<Mutex<Memory>>,
    base: NonNull<c_void>,
    pages: usize,
    writable: bool,
}

// SAFETY: the pages are reached by copies only, from any thread; they stay mapped until the drop.
unsafe impl Send for Mapping {}
// SAFETY: as above; who writes while another reads is as two of the guest's vCPUs.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// So many bytes at a place, if they lie inside.
    fn at(&self, page: usize, offset: usize, bytes: usize) -> Option<NonNull<u8>> {
        let start = page.checked_mul(PAGE)?.checked_add(offset)?;
        let end = start.checked_add(bytes)?;
        if end > self.pages * PAGE {
            return None;
        }
        // SAFETY: it is inside the mapping.
        Some(unsafe { self.base.cast::<u8>().add(start) })
    }
}

impl Mapped for Mapping {
    fn read(&self, page: usize, offset: usize, buf: &mut [u8]) {
        let Some(at) = self.at(page, offset, buf.len()) else { return };
        // SAFETY: the caller asks for pages that are there, and the buffer is not the guest's.
        unsafe { at.copy_to_nonoverlapping(NonNull::from(&mut *buf).cast(), buf.len()) };
    }

    fn write(&self, page: usize, offset: usize, data: &[u8]) {
        let Some(at) = self.at(page, offset, data.len()).filter(|_| self.writable) else { return };
        // SAFETY: the caller asks for pages that are there, and the data is not the guest's.
        unsafe { at.copy_from_nonoverlapping(NonNull::from(data).cast(), data.len()) };
    }

    fn moved(&self, _page: usize) -> bool {
        false
    }

    fn machine(&self, _page: usize) -> Option<u64> {
        None
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: nobody uses the mapping any more, and it is as long as it was made.
        unsafe { c::xenforeignmemory_unmap(memory.0.as_ptr(), self.base.as_ptr(), self.pages) };
    }
}
