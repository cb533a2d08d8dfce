//! The state of vCPUs, and what is injected into them.

use std::ffi::c_int;
use std::io::Result;
use std::mem::{offset_of, size_of};
use std::ptr::null_mut;

use xenctrl_sys as c;

use super::{Xen, done};
use crate::hypervisor::{Context, Trap};
use crate::registers::convert;

// The functions of device models that libxenctrl keeps for callers of old; their header hides them from the crate.
#[link(name = "xenctrl")]
unsafe extern "C" {
    fn xc_hvm_inject_trap(
        handle: *mut c::xc_interface,
        domid: u32,
        vcpu: c_int,
        vector: u8,
        kind: u8,
        error: u32,
        length: u8,
        cr2: u64,
    ) -> c_int;
    fn xc_hvm_inject_msi(handle: *mut c::xc_interface, domid: u32, address: u64, data: u32) -> c_int;
}

/// No error code (X86_EVENT_NO_EC).
const NO_ERROR: u32 = u32::MAX;

// The table of registers is written down by number.
const _: () = assert!(size_of::<c::hvm_hw_cpu>() == convert::CPU_BYTES);
const _: () = assert!(offset_of!(c::hvm_hw_cpu, rip) == 640);
const _: () = assert!(offset_of!(c::hvm_hw_cpu, cs_sel) == 736);
const _: () = assert!(offset_of!(c::hvm_hw_cpu, cs_arbytes) == 888);
const _: () = assert!(offset_of!(c::hvm_hw_cpu, tsc) == 1008);

impl Context for Xen {
    fn load(&self) -> Result<Vec<u8>> {
        // SAFETY: without a buffer it tells how many bytes there are at most.
        let code = unsafe { c::xc_domain_hvm_getcontext(self.handle.raw(), self.domid, null_mut(), 0) };
        let mut records = vec![0; done(code)? as usize];
        let (at, bytes) = (records.as_mut_ptr(), records.len() as u32);
        // SAFETY: the buffer has as many bytes as are told.
        let code = unsafe { c::xc_domain_hvm_getcontext(self.handle.raw(), self.domid, at, bytes) };
        records.truncate(done(code)? as usize);
        Ok(records)
    }

    fn store(&self, records: &[u8]) -> Result<()> {
        let mut records = records.to_vec();
        let (at, bytes) = (records.as_mut_ptr(), records.len() as u32);
        // SAFETY: the buffer has as many bytes as are told.
        done(unsafe { c::xc_domain_hvm_setcontext(self.handle.raw(), self.domid, at, bytes) }).map(drop)
    }

    fn record(&self, kind: u16, vcpu: u32, bytes: usize) -> Result<Vec<u8>> {
        let mut record = vec![0; bytes];
        let at = record.as_mut_ptr().cast();
        let (domid, instance, bytes) = (self.domid, vcpu as u16, bytes as u32);
        // SAFETY: the buffer has as many bytes as are told.
        let code = unsafe {
            c::xc_domain_hvm_getcontext_partial(self.handle.raw(), domid, kind, instance, at, bytes)
        };
        done(code).map(|_| record)
    }

    fn inject(&self, vcpu: u32, trap: Trap) -> Result<()> {
        let Trap { vector, kind, error, length, cr2 } = trap;
        let error = error.unwrap_or(NO_ERROR);
        let (handle, vcpu) = (self.handle.raw(), vcpu.cast_signed());
        // SAFETY: the handle is open.
        done(unsafe { xc_hvm_inject_trap(handle, self.domid, vcpu, vector, kind, error, length, cr2) })
            .map(drop)
    }

    fn message(&self, address: u64, data: u32) -> Result<()> {
        // SAFETY: the handle is open.
        done(unsafe { xc_hvm_inject_msi(self.handle.raw(), self.domid, address, data) }).map(drop)
    }

    fn nmi(&self, vcpu: u32) -> Result<()> {
        let trigger = c::XEN_DOMCTL_SENDTRIGGER_NMI;
        // SAFETY: the handle is open.
        done(unsafe { c::xc_domain_send_trigger(self.handle.raw(), self.domid, trigger, vcpu) }).map(drop)
    }
}
