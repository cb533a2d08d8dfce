//! The functions of libkvmi that crate kvmi lacks, by kvmi-sys. Each is one call with a handle that is alive.

use std::ffi::{c_int, c_void};
use std::io;
use std::ptr;

use kvmi_sys as sys;

use crate::port::{Answer, Refusal, errno};

/// libkvmi's own handles. They are on one thread: pointers are not sent.
pub struct Handles {
    ctx: *mut c_void,
    dom: *mut c_void,
}

/// The refusal that errno tells of, after a call that failed.
pub fn refusal(error: &io::Error) -> Refusal {
    const KNOWN: [i32; 8] = [
        errno::EPERM,
        errno::ENOENT,
        errno::EAGAIN,
        errno::ENOMEM,
        errno::EBUSY,
        errno::EINVAL,
        errno::ENOSYS,
        errno::EOPNOTSUPP,
    ];
    match error.raw_os_error() {
        Some(number) if KNOWN.contains(&number) => Refusal::Errno(number),
        // Lost, late, or out of step: what comes next on this connection can't be told apart any more.
        _ => Refusal::Gone(format!("the connection to the hypervisor broke: {error}")),
    }
}

fn done(result: c_int) -> Answer<()> {
    if result == 0 { Ok(()) } else { Err(refusal(&io::Error::last_os_error())) }
}

impl Handles {
    /// Of the addresses that crate kvmi keeps.
    pub fn new(ctx: usize, dom: usize) -> Self {
        Self { ctx: ptr::with_exposed_provenance_mut(ctx), dom: ptr::with_exposed_provenance_mut(dom) }
    }

    /// The domain.
    pub fn dom(&self) -> *mut c_void {
        self.dom
    }

    /// The descriptor of the connection.
    pub fn fd(&self) -> i32 {
        // SAFETY: the domain is open until `close`.
        unsafe { sys::kvmi_connection_fd(self.dom) }
    }

    /// Ends both. Nothing of libkvmi may be used any more.
    pub fn close(&mut self) {
        let (ctx, dom) = (self.ctx, self.dom);
        (self.ctx, self.dom) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the context is libkvmi's, and ended once: a null one is left alone.
        unsafe { sys::kvmi_uninit(ctx) };
        // SAFETY: as above, and the thread that could still use the domain ended with the context.
        unsafe { sys::kvmi_domain_close(dom, true) };
    }

    /// As `kvmi_check_event`.
    pub fn check_event(&self, event: u8) -> Answer<()> {
        // SAFETY: the domain is open until `close`.
        done(unsafe { sys::kvmi_check_event(self.dom, c_int::from(event)) })
    }

    /// As `kvmi_check_command`.
    pub fn check_command(&self, id: c_int) -> Answer<()> {
        // SAFETY: the domain is open until `close`.
        done(unsafe { sys::kvmi_check_command(self.dom, id) })
    }

    /// As `kvmi_control_events`, for the kinds that crate kvmi has no name for.
    pub fn control_events(&self, vcpu: u16, event: u8, on: bool) -> Answer<()> {
        // SAFETY: the domain is open until `close`.
        done(unsafe { sys::kvmi_control_events(self.dom, vcpu, c_int::from(event), on) })
    }

    /// As `kvmi_control_vm_events`.
    pub fn control_vm_events(&self, event: u8, on: bool) -> Answer<()> {
        // SAFETY: the domain is open until `close`.
        done(unsafe { sys::kvmi_control_vm_events(self.dom, c_int::from(event), on) })
    }

    /// As `kvmi_control_singlestep`.
    pub fn control_step(&self, vcpu: u16, on: bool) -> Answer<()> {
        // SAFETY: the domain is open until `close`.
        done(unsafe { sys::kvmi_control_singlestep(self.dom, vcpu, on) })
    }

    /// As `kvmi_get_maximum_gfn`: crate kvmi takes its failure for success.
    pub fn max_gfn(&self) -> Answer<u64> {
        let mut gfn = 0;
        // SAFETY: the domain is open until `close`, and the number is ours.
        done(unsafe { sys::kvmi_get_maximum_gfn(self.dom, &raw mut gfn) })?;
        Ok(gfn)
    }

    /// As `kvmi_translate_gva`.
    pub fn translate(&self, vcpu: u16, gva: u64) -> Answer<u64> {
        let mut gpa = 0;
        // SAFETY: the domain is open until `close`, and the number is ours.
        done(unsafe { sys::kvmi_translate_gva(self.dom, vcpu, gva, &raw mut gpa) })?;
        Ok(gpa)
    }

    /// As `kvmi_get_xcr` of XCR0.
    pub fn xcr0(&self, vcpu: u16) -> Answer<u64> {
        let mut value = 0;
        // SAFETY: the domain is open until `close`, and the number is ours.
        done(unsafe { sys::kvmi_get_xcr(self.dom, vcpu, 0, &raw mut value) })?;
        Ok(value)
    }

    /// As `kvmi_inject_exception`.
    pub fn inject(&self, vcpu: u16, vector: u8, error: u32, address: u64) -> Answer<()> {
        // SAFETY: the domain is open until `close`.
        done(unsafe { sys::kvmi_inject_exception(self.dom, vcpu, address, error, vector) })
    }

    /// As `kvmi_set_page_access`, of many pages at once.
    pub fn access(&self, gpas: &mut [u64], rights: &mut [u8], view: u16) -> Answer<()> {
        let count = gpas.len().min(rights.len()) as u16;
        // SAFETY: the domain is open until `close`, and both arrays have as many elements.
        done(unsafe {
            sys::kvmi_set_page_access(self.dom, gpas.as_mut_ptr(), rights.as_mut_ptr(), count, view)
        })
    }

    /// A pause of one vCPU: `kvmi_queue_pause_vcpu` in a batch of its own.
    pub fn pause(&self, vcpu: u16) -> Answer<()> {
        // SAFETY: the domain is open until `close`.
        let batch = unsafe { sys::kvmi_batch_alloc(self.dom) };
        if batch.is_null() {
            return Err(Refusal::Errno(errno::ENOMEM));
        }
        // SAFETY: the batch is the one made above.
        let queued = done(unsafe { sys::kvmi_queue_pause_vcpu(batch, vcpu) });
        let sent = queued.and_then(|()| {
            // SAFETY: as above.
            done(unsafe { sys::kvmi_batch_commit(batch) })
        });
        // SAFETY: as above, and it is not used any more.
        unsafe { sys::kvmi_batch_free(batch) };
        sent
    }

    /// As `kvmi_create_ept_view`.
    pub fn create_view(&self) -> Answer<u16> {
        let mut view = 0;
        // SAFETY: the domain is open until `close`, and the number is ours.
        done(unsafe { sys::kvmi_create_ept_view(self.dom, &raw mut view) })?;
        Ok(view)
    }

    /// As `kvmi_destroy_ept_view`.
    pub fn destroy_view(&self, view: u16) -> Answer<()> {
        // SAFETY: the domain is open until `close`.
        done(unsafe { sys::kvmi_destroy_ept_view(self.dom, view) })
    }

    /// As `kvmi_switch_ept_view`.
    pub fn switch_view(&self, vcpu: u16, view: u16) -> Answer<()> {
        // SAFETY: the domain is open until `close`.
        done(unsafe { sys::kvmi_switch_ept_view(self.dom, vcpu, view) })
    }

    /// As `kvmi_change_gfn`. It goes to a vCPU, but is of the view.
    pub fn change_gfn(&self, view: u16, gfn: u64, to: u64) -> Answer<()> {
        // SAFETY: the domain is open until `close`.
        done(unsafe { sys::kvmi_change_gfn(self.dom, 0, view, gfn, to) })
    }

    /// As `kvmi_alloc_gfn`.
    pub fn alloc_gfn(&self, gfn: u64) -> Answer<()> {
        // SAFETY: the domain is open until `close`.
        done(unsafe { sys::kvmi_alloc_gfn(self.dom, gfn) })
    }

    /// As `kvmi_free_gfn`.
    pub fn free_gfn(&self, gfn: u64) -> Answer<()> {
        // SAFETY: the domain is open until `close`.
        done(unsafe { sys::kvmi_free_gfn(self.dom, gfn) })
    }
}
