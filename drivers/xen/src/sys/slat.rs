//! Permissions and alternate views.

use std::io::Result;
use std::ops::Range;
use std::sync::Arc;

use xenctrl_sys as c;
use xenctrl_sys::xenmem_access_t;

use super::{Xen, done};
use crate::error::is;
use crate::error::number::ENODEV;
use crate::hypervisor::{Bell, Probe, Slat};

/// How many frames of a view are set by one call.
const BATCH: u64 = 4096;

impl Probe for Xen {
    fn events(&self) -> Result<u32> {
        let mut events = 0;
        let at = &raw mut events;
        // SAFETY: the number has room.
        done(unsafe { c::xc_monitor_get_capabilities(self.handle.raw(), self.domid, at) }).map(|_| events)
    }

    fn views(&self) -> Result<bool> {
        let mut on = false;
        let at = &raw mut on;
        // SAFETY: the flag has room.
        done(unsafe { c::xc_altp2m_get_domain_state(self.handle.raw(), self.domid, at) }).map(|_| on)
    }

    fn rights(&self) -> Result<()> {
        let mut access = xenmem_access_t::XENMEM_access_n;
        let at = &raw mut access;
        // SAFETY: the number has room, and Xen gives one of those that the type has.
        let code = unsafe { c::xc_get_mem_access(self.handle.raw(), self.domid, 0, at) };
        match done(code) {
            // It could, with a ring.
            Err(error) if is(&error, ENODEV) => Ok(()),
            other => other.map(drop),
        }
    }

    fn bell(&self) -> Arc<dyn Bell> {
        Arc::clone(&self.bell) as Arc<dyn Bell>
    }
}

impl Slat for Xen {
    fn set_views(&self, on: bool) -> Result<()> {
        // SAFETY: the handle is open.
        done(unsafe { c::xc_altp2m_set_domain_state(self.handle.raw(), self.domid, on) }).map(drop)
    }

    fn create(&self, access: u8) -> Result<u16> {
        let mut view = u16::MAX;
        let (at, access) = (&raw mut view, rights(access));
        // SAFETY: the number has room.
        done(unsafe { c::xc_altp2m_create_view(self.handle.raw(), self.domid, access, at) }).map(|_| view)
    }

    fn destroy(&self, view: u16) -> Result<()> {
        // SAFETY: the handle is open.
        done(unsafe { c::xc_altp2m_destroy_view(self.handle.raw(), self.domid, view) }).map(drop)
    }

    fn switch(&self, view: u16) -> Result<()> {
        // SAFETY: the handle is open.
        done(unsafe { c::xc_altp2m_switch_to_view(self.handle.raw(), self.domid, view) }).map(drop)
    }

    fn set_access(&self, view: u16, frames: Range<u64>, access: u8) -> Result<()> {
        for first in frames.clone().step_by(BATCH as usize) {
            let count = BATCH.min(frames.end - first);
            if view == 0 {
                let (first, count, access) = (first, count as u32, rights(access));
                // SAFETY: the handle is open.
                let code =
                    unsafe { c::xc_set_mem_access(self.handle.raw(), self.domid, access, first, count) };
                done(code)?;
                continue;
            }
            let mut each: Vec<u64> = (first..first + count).collect();
            let mut rights = vec![access; each.len()];
            let (rights, each, count) = (rights.as_mut_ptr(), each.as_mut_ptr(), count as u32);
            let (handle, domid) = (self.handle.raw(), self.domid);
            // SAFETY: both rows have as many numbers as are told.
            done(unsafe { c::xc_altp2m_set_mem_access_multi(handle, domid, view, rights, each, count) })?;
        }
        Ok(())
    }

    fn change(&self, view: u16, frame: u64, to: Option<u64>) -> Result<()> {
        let to = to.unwrap_or(u64::MAX);
        // SAFETY: the handle is open.
        done(unsafe { c::xc_altp2m_change_gfn(self.handle.raw(), self.domid, view, frame, to) }).map(drop)
    }
}

fn rights(access: u8) -> xenmem_access_t {
    match access & 7 {
        0 => xenmem_access_t::XENMEM_access_n,
        1 => xenmem_access_t::XENMEM_access_r,
        2 => xenmem_access_t::XENMEM_access_w,
        3 => xenmem_access_t::XENMEM_access_rw,
        4 => xenmem_access_t::XENMEM_access_x,
        5 => xenmem_access_t::XENMEM_access_rx,
        6 => xenmem_access_t::XENMEM_access_wx,
        _ => xenmem_access_t::XENMEM_access_rwx,
    }
}
