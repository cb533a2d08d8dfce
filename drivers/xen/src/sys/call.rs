//! Domain controls that libxenctrl has no function for, by libxencall: pauses of one vCPU, what lies at frames, writes of
//! control registers that wait for their answer.

use std::ffi::{c_int, c_uint, c_void};
use std::io::{Error, Result};
use std::mem::{size_of, zeroed};
use std::ptr::NonNull;

use xenctrl_sys as c;

use super::{done, handle};

// libxencall is stable since Xen 4.7 and what libxenctrl itself is built on; no crate binds it.
#[link(name = "xencall")]
unsafe extern "C" {
    fn xencall_open(logger: *mut c::xentoollog_logger, flags: c_uint) -> *mut c_void;
    fn xencall_close(call: *mut c_void) -> c_int;
    fn xencall1(call: *mut c_void, op: c_uint, argument: u64) -> c_int;
    fn xencall_alloc_buffer(call: *mut c_void, bytes: usize) -> *mut c_void;
    fn xencall_free_buffer(call: *mut c_void, buffer: *mut c_void);
}

/// What Xen takes at once (xen/arch/x86/domctl.c).
pub const BATCH: usize = 1024;

/// An open handle of libxencall.
pub struct Call(NonNull<c_void>);

/// Memory that a hypercall may use.
struct Buffer<'a>(&'a Call, NonNull<c_void>);

impl Call {
    /// Opens one.
    ///
    /// # Errors
    /// Xen can't be talked to.
    pub fn open() -> Result<Self> {
        // SAFETY: the logger is there for ever, and the library does not write to it.
        let call = unsafe { xencall_open(handle::silent(), 0) };
        NonNull::new(call).map(Self).ok_or_else(Error::last_os_error)
    }

    fn buffer(&self, bytes: usize) -> Result<Buffer<'_>> {
        // SAFETY: the handle is open.
        let buffer = unsafe { xencall_alloc_buffer(self.0.as_ptr(), bytes) };
        NonNull::new(buffer).map(|buffer| Buffer(self, buffer)).ok_or_else(Error::last_os_error)
    }

    fn control(
        &self,
        domid: u32,
        cmd: u32,
        u: c::xen_domctl__bindgen_ty_1,
    ) -> Result<c::xen_domctl__bindgen_ty_1> {
        let buffer = self.buffer(size_of::<c::xen_domctl>())?;
        let version = c::XEN_DOMCTL_INTERFACE_VERSION;
        let control =
            c::xen_domctl { cmd, interface_version: version, domain: domid as u16, _pad: [0; 3], u };
        let at = buffer.1.as_ptr();
        // SAFETY: the buffer is as large as the structure, and aligned to a page.
        unsafe { at.cast::<c::xen_domctl>().write(control) };
        // SAFETY: the buffer holds a whole control, and all that it points to outlives this call.
        let code = unsafe { xencall1(self.0.as_ptr(), c::__HYPERVISOR_domctl, at as u64) };
        done(code)?;
        // SAFETY: the buffer holds a whole control; Xen may have changed it.
        Ok(unsafe { at.cast::<c::xen_domctl>().read() }.u)
    }

    /// Whether a domain is there, and is not being destroyed.
    #[must_use]
    pub fn alive(&self, domid: u32) -> bool {
        // SAFETY: the structure is plain numbers.
        let getdomaininfo: c::xen_domctl_getdomaininfo = unsafe { zeroed() };
        let u = c::xen_domctl__bindgen_ty_1 { getdomaininfo };
        self.control(domid, c::XEN_DOMCTL_getdomaininfo, u).is_ok_and(|u| {
            // SAFETY: the structure is plain numbers, and Xen has filled it.
            let info = unsafe { u.getdomaininfo };
            u32::from(info.domain) == domid && info.flags & c::XEN_DOMINF_dying == 0
        })
    }

    /// One more pause of a vCPU, or one less.
    ///
    /// # Errors
    /// As Xen says; EBUSY unless the domain is paused.
    pub fn pause_vcpu(&self, domid: u32, vcpu: u32, more: bool) -> Result<()> {
        let cmd = if more { c::XEN_DOMCTL_gdbsx_pausevcpu } else { c::XEN_DOMCTL_gdbsx_unpausevcpu };
        let gdbsx_pauseunp_vcpu = c::xen_domctl_gdbsx_pauseunp_vcpu { vcpu };
        self.control(domid, cmd, c::xen_domctl__bindgen_ty_1 { gdbsx_pauseunp_vcpu }).map(drop)
    }

    /// Makes writes of control registers and MSRs wait for their answer, until the ring is given back.
    ///
    /// # Errors
    /// As Xen says.
    pub fn hold_writes(&self, domid: u32) -> Result<()> {
        let monitor_op = c::xen_domctl_monitor_op {
            op: c::XEN_DOMCTL_MONITOR_OP_CONTROL_REGISTERS,
            ..c::xen_domctl_monitor_op::default()
        };
        self.control(domid, c::XEN_DOMCTL_monitor_op, c::xen_domctl__bindgen_ty_1 { monitor_op }).map(drop)
    }

    /// The extended state of a vCPU; empty where the machine has none.
    ///
    /// # Errors
    /// As Xen says.
    pub fn extended(&self, domid: u32, vcpu: u32) -> Result<Vec<u8>> {
        let mut vcpuextstate = c::xen_domctl_vcpuextstate { vcpu, ..c::xen_domctl_vcpuextstate::default() };
        let cmd = c::XEN_DOMCTL_getvcpuextstate;
        // Without a buffer it tells how many bytes there are.
        let u = self.control(domid, cmd, c::xen_domctl__bindgen_ty_1 { vcpuextstate })?;
        // SAFETY: the structure is plain numbers, and Xen has filled it.
        vcpuextstate = unsafe { u.vcpuextstate };
        if vcpuextstate.size == 0 {
            return Ok(Vec::new());
        }
        let bytes = vcpuextstate.size as usize;
        let buffer = self.buffer(bytes)?;
        vcpuextstate.buffer.p = buffer.1.as_ptr().cast();
        self.control(domid, cmd, c::xen_domctl__bindgen_ty_1 { vcpuextstate })?;
        let mut state = vec![0; bytes];
        // SAFETY: Xen has filled so many bytes of the buffer, and the copy is not in it.
        unsafe { buffer.1.as_ptr().cast::<u8>().copy_to_nonoverlapping(state.as_mut_ptr(), bytes) };
        Ok(state)
    }

    /// Puts the extended state of a vCPU in place.
    ///
    /// # Errors
    /// As Xen says.
    pub fn set_extended(&self, domid: u32, vcpu: u32, state: &[u8]) -> Result<()> {
        let buffer = self.buffer(state.len())?;
        // SAFETY: the buffer has as many bytes, and nobody else uses it.
        unsafe { buffer.1.as_ptr().cast::<u8>().copy_from_nonoverlapping(state.as_ptr(), state.len()) };
        let mut vcpuextstate = c::xen_domctl_vcpuextstate { vcpu, ..c::xen_domctl_vcpuextstate::default() };
        vcpuextstate.size = state.len() as u64;
        vcpuextstate.buffer.p = buffer.1.as_ptr().cast();
        let u = c::xen_domctl__bindgen_ty_1 { vcpuextstate };
        self.control(domid, c::XEN_DOMCTL_setvcpuextstate, u).map(drop)
    }

    /// Of each of the frames whether memory is there; at most [`BATCH`].
    ///
    /// # Errors
    /// As Xen says.
    pub fn present(&self, domid: u32, frames: &[u64], there: &mut [bool]) -> Result<()> {
        let buffer = self.buffer(size_of_val(frames))?;
        let at = buffer.1.as_ptr().cast::<u64>();
        for (n, frame) in frames.iter().enumerate() {
            // SAFETY: the buffer has a number for each frame.
            let slot = unsafe { at.add(n) };
            // SAFETY: as above, and nobody else uses it now.
            unsafe { slot.write(*frame) };
        }
        let array = c::__guest_handle_xen_pfn_t { p: at.cast() };
        let getpageframeinfo3 = c::xen_domctl_getpageframeinfo3 { num: frames.len() as u64, array };
        let u = c::xen_domctl__bindgen_ty_1 { getpageframeinfo3 };
        self.control(domid, c::XEN_DOMCTL_getpageframeinfo3, u)?;
        for (n, there) in there.iter_mut().take(frames.len()).enumerate() {
            // SAFETY: the buffer has a number for each frame.
            let slot = unsafe { at.add(n) };
            // SAFETY: as above; Xen has filled it.
            let kind = unsafe { slot.read() } as u32 & NO_MEMORY;
            *there = kind != NO_MEMORY;
        }
        Ok(())
    }
}

/// XEN_DOMCTL_PFINFO_XTAB: neither memory nor broken memory has all of these bits, but for a page of which the machine's
/// memory broke, which can't be read either.
const NO_MEMORY: u32 = 0xf << 28;

impl Drop for Call {
    fn drop(&mut self) {
        // SAFETY: nobody uses the handle any more; its buffers borrow it.
        unsafe { xencall_close(self.0.as_ptr()) };
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        // SAFETY: it came from this handle and is freed once.
        unsafe { xencall_free_buffer(self.0.0.as_ptr(), self.1.as_ptr()) };
    }
}
