//! Xen's monitor: which events it raises, and the ring that they come by.

use std::io::{Error, Result};
use std::ptr::NonNull;
use std::time::Duration;

use xenctrl_sys as c;

use super::ring::{self, Ring};
use super::{Xen, done};
use crate::error::number::ENODEV;
use crate::events::wire::Slot;
use crate::hypervisor::{Intercept, Monitor};

impl Xen {
    fn ring(&mut self) -> Result<&mut Ring> {
        self.ring.as_mut().ok_or_else(|| Error::from_raw_os_error(ENODEV))
    }
}

impl Monitor for Xen {
    fn take(&mut self) -> Result<()> {
        let mut port = 0;
        // SAFETY: the number has room.
        let page = unsafe { c::xc_monitor_enable(self.handle.raw(), self.domid, &raw mut port) };
        let page = NonNull::new(page).ok_or_else(Error::last_os_error)?;
        match Ring::new(self.domid, page, port) {
            Ok(ring) => self.ring = Some(ring),
            Err(error) => {
                // It would be ours for ever, and nobody else's.
                let _ = self.give_back();
                return Err(error);
            }
        }
        Ok(())
    }

    fn hold_writes(&self) -> Result<()> {
        self.call.hold_writes(self.domid)
    }

    fn give_back(&mut self) -> Result<()> {
        // SAFETY: the handle is open.
        let code = unsafe { c::xc_monitor_disable(self.handle.raw(), self.domid) };
        done(code)?;
        self.ring = None;
        Ok(())
    }

    fn set(&self, what: Intercept, on: bool) -> Result<()> {
        let (handle, domid) = (self.handle.raw(), self.domid);
        done(match what {
            // SAFETY: the handle is open.
            Intercept::Control { index, wait } => unsafe {
                c::xc_monitor_write_ctrlreg(handle, domid, index, on, wait, 0, false)
            },
            // SAFETY: the handle is open.
            Intercept::Msr(index) => unsafe { c::xc_monitor_mov_to_msr(handle, domid, index, on, false) },
            // SAFETY: the handle is open.
            Intercept::Step => unsafe { c::xc_monitor_singlestep(handle, domid, on) },
            // SAFETY: the handle is open.
            Intercept::Breakpoint => unsafe { c::xc_monitor_software_breakpoint(handle, domid, on) },
            // SAFETY: the handle is open.
            Intercept::GuestRequest => unsafe { c::xc_monitor_guest_request(handle, domid, on, true, true) },
            // SAFETY: the handle is open.
            Intercept::Cpuid => unsafe { c::xc_monitor_cpuid(handle, domid, on) },
            // SAFETY: the handle is open.
            Intercept::Descriptor => unsafe { c::xc_monitor_descriptor_access(handle, domid, on) },
            // SAFETY: the handle is open.
            Intercept::Io => unsafe { c::xc_monitor_io(handle, domid, on) },
            // SAFETY: the handle is open.
            Intercept::Unemulated => unsafe { c::xc_monitor_emul_unimplemented(handle, domid, on) },
        })
        .map(drop)
    }

    fn request(&mut self) -> Result<Option<Slot>> {
        Ok(self.ring.as_mut().and_then(Ring::request))
    }

    fn respond(&mut self, response: &Slot) -> Result<()> {
        self.ring()?.respond(response)
    }

    fn wait(&mut self, timeout: Duration) -> Result<()> {
        ring::wait(self.ring.as_ref(), &self.bell, timeout)
    }
}
