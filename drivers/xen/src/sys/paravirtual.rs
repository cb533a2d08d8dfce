//! The state of a PV domain's vCPUs.

use std::io::{Error, ErrorKind, Result};
use std::mem::{offset_of, size_of, zeroed};

use xenctrl_sys as c;

use super::{Xen, done};
use crate::hypervisor::Paravirtual;
use crate::pv::{context, root};

// Registers and the fields of the shared page are written down by number.
const _: () = assert!(size_of::<c::vcpu_guest_context>() == context::BYTES);
const _: () = assert!(offset_of!(c::vcpu_guest_context, user_regs) == 520);
const _: () = assert!(offset_of!(c::vcpu_guest_context, ldt_base) == 4816);
const _: () = assert!(offset_of!(c::vcpu_guest_context, ctrlreg) == 4984);
const _: () = assert!(offset_of!(c::vcpu_guest_context, gs_base_user) == 5160);
const _: () = assert!(offset_of!(c::shared_info, arch) == root::FIELDS);
const _: () = assert!(offset_of!(c::arch_shared_info, p2m_generation) == root::BYTES - 8);

impl Paravirtual for Xen {
    fn width(&self) -> Result<u32> {
        let mut width = 0;
        let at = &raw mut width;
        // SAFETY: the number has room.
        done(unsafe { c::xc_domain_get_guest_width(self.handle.raw(), self.domid, at) }).map(|_| width)
    }

    fn context(&self, vcpu: u32) -> Result<Vec<u8>> {
        // SAFETY: the structure is plain numbers.
        let mut found: c::vcpu_guest_context_any_t = unsafe { zeroed() };
        let at = &raw mut found;
        // SAFETY: the structure has room for the context of any guest.
        done(unsafe { c::xc_vcpu_getcontext(self.handle.raw(), self.domid, vcpu, at) })?;
        let mut context = vec![0; context::BYTES];
        // SAFETY: the structure has at least so many bytes, all of them plain numbers.
        unsafe { at.cast::<u8>().copy_to_nonoverlapping(context.as_mut_ptr(), context::BYTES) };
        Ok(context)
    }

    fn set_context(&self, vcpu: u32, context: &[u8]) -> Result<()> {
        if context.len() != context::BYTES {
            return Err(Error::from(ErrorKind::InvalidInput));
        }
        // SAFETY: the structure is plain numbers.
        let mut whole: c::vcpu_guest_context_any_t = unsafe { zeroed() };
        let at = &raw mut whole;
        // SAFETY: the structure has at least so many bytes, and any of them are plain numbers.
        unsafe { at.cast::<u8>().copy_from_nonoverlapping(context.as_ptr(), context::BYTES) };
        // SAFETY: the structure is a whole context.
        done(unsafe { c::xc_vcpu_setcontext(self.handle.raw(), self.domid, vcpu, at) }).map(drop)
    }

    fn extended(&self, vcpu: u32) -> Result<Vec<u8>> {
        self.call.extended(self.domid, vcpu)
    }

    fn set_extended(&self, vcpu: u32, state: &[u8]) -> Result<()> {
        self.call.set_extended(self.domid, vcpu, state)
    }
}
