//! The domain's pages.

use std::io::{Error, ErrorKind, Result};

use xenctrl_sys as c;

use super::{Xen, done};
use crate::hypervisor::Pages;

/// KiB of a page.
const PAGE_KIB: u64 = 4;

impl Pages for Xen {
    fn add(&self, frame: u64) -> Result<()> {
        let mut frame: c::xen_pfn_t = frame;
        let at = &raw mut frame;
        // SAFETY: one frame is told, and one is there.
        let code = unsafe { c::xc_domain_populate_physmap_exact(self.handle.raw(), self.domid, 1, 0, 0, at) };
        done(code).map(drop)
    }

    fn remove(&self, frames: &[u64]) -> Result<()> {
        let mut frames: Vec<c::xen_pfn_t> = frames.to_vec();
        let (at, count) = (frames.as_mut_ptr(), frames.len() as u64);
        // SAFETY: as many frames are there as are told.
        let code =
            unsafe { c::xc_domain_decrease_reservation_exact(self.handle.raw(), self.domid, count, 0, at) };
        done(code).map(drop)
    }

    fn set_max(&self, pages: u64) -> Result<()> {
        let kib = pages.checked_mul(PAGE_KIB).ok_or_else(|| Error::from(ErrorKind::InvalidInput))?;
        // SAFETY: the handle is open.
        done(unsafe { c::xc_domain_setmaxmem(self.handle.raw(), self.domid, kib) }).map(drop)
    }

    fn highest(&self) -> Result<u64> {
        let mut highest: c::xen_pfn_t = 0;
        let at = &raw mut highest;
        // SAFETY: the number has room.
        let code = unsafe { c::xc_domain_maximum_gpfn(self.handle.raw(), self.domid, at) };
        done(code).map(|_| highest)
    }
}
