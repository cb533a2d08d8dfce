//! Xen's table of the machine's frames (machine-to-physical), which it shows to dom0 as memory of its own.

use std::io::{Error, Result};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;
use xenctrl_sys as c;

use super::done;
use super::frames::{self, Mapping, Memory};
use super::handle::Handle;
use crate::error::number::EINVAL;
use crate::hypervisor::{MachineTable, Mapped};

/// Xen itself, as a domain (DOMID_XEN of public/xen.h).
const XEN: u32 = 0x7ff2;
/// Entries of a page of the table.
const ENTRIES: u64 = 512;
/// Pages of the table that lie side by side in the machine: 2 MiB (xc_machphys_mfn_list).
const SIDE_BY_SIDE: u64 = 512;
/// How many pages are kept mapped: tables of a guest lie near each other, and the machine's frames don't move.
const KEPT: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// The table.
pub struct Table {
    memory: Arc<Mutex<Memory>>,
    /// Where each 2 MiB of it begin.
    extents: Vec<u64>,
    kept: Mutex<LruCache<u64, Arc<Mapping>>>,
}

impl Table {
    /// Finds it.
    ///
    /// # Errors
    /// As Xen says.
    pub fn open() -> Result<Self> {
        let handle = Handle::open()?;
        let mut highest: c::xen_pfn_t = 0;
        let at = &raw mut highest;
        // SAFETY: the number has room.
        done(unsafe { c::xc_maximum_ram_page(handle.raw(), at) })?;
        let mut extents = vec![0; (highest / ENTRIES / SIDE_BY_SIDE + 1) as usize];
        let (count, at) = (extents.len() as u64, extents.as_mut_ptr());
        // SAFETY: there is room for as many numbers as are told.
        done(unsafe { c::xc_machphys_mfn_list(handle.raw(), count, at) })?;
        Ok(Self { memory: Memory::open()?, extents, kept: Mutex::new(LruCache::new(KEPT)) })
    }

    fn page(&self, number: u64) -> Result<Arc<Mapping>> {
        let none = || Error::from_raw_os_error(EINVAL);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(page) = kept.get(&number) {
            return Ok(Arc::clone(page));
        }
        let extent = usize::try_from(number / SIDE_BY_SIDE).ok().and_then(|extent| self.extents.get(extent));
        let frame = extent.ok_or_else(none)? + number % SIDE_BY_SIDE;
        let (page, there) = frames::map(&self.memory, XEN, libc::PROT_READ, &[frame])?;
        if there.first() != Some(&true) {
            return Err(none());
        }
        let page = Arc::new(page);
        kept.put(number, Arc::clone(&page));
        Ok(page)
    }
}

impl MachineTable for Table {
    fn own(&self, machine: u64) -> Result<u64> {
        let page = self.page(machine / ENTRIES)?;
        let mut entry = [0; 8];
        page.read(0, (machine % ENTRIES * 8) as usize, &mut entry);
        Ok(u64::from_le_bytes(entry))
    }
}
