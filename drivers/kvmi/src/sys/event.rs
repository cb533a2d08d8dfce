//! Events as libkvmi hands them out. Crate kvmi panics at a kind that it does not know, so they are taken by kvmi-sys; those that
//! it knows are answered by it.

use std::io;
use std::ptr;

use kvmi::{KVMiCr, KVMiEvent, KVMiEventReply, KVMiEventType, KVMiPageAccess};
use kvmi_sys as sys;

use super::call::{Handles, refusal};
use super::copy;
use crate::port::{Answer, Kind, Refusal, Reply, Told, kind};

/// An event of libkvmi's, which crate kvmi's frees when it is dropped.
pub struct Event(KVMiEvent);

/// Where libkvmi's unnamed parts are called so by bindgen.
type Detail = sys::kvmi_dom_event__bindgen_ty_1__bindgen_ty_1;

fn kind_of(number: u8, detail: &Detail) -> Kind {
    match number {
        kind::CR => {
            // SAFETY: the kind says which part it is; all are plain numbers.
            let cr = unsafe { detail.cr };
            Kind::Cr { cr: cr.cr, old: cr.old_value, new: cr.new_value }
        }
        kind::MSR => {
            // SAFETY: as above.
            let msr = unsafe { detail.msr };
            Kind::Msr { msr: msr.msr, old: msr.old_value, new: msr.new_value }
        }
        kind::BREAKPOINT => {
            // SAFETY: as above.
            let breakpoint = unsafe { detail.breakpoint };
            Kind::Breakpoint { gpa: breakpoint.gpa, len: breakpoint.insn_len }
        }
        kind::PF => {
            // SAFETY: as above.
            let fault = unsafe { detail.page_fault };
            Kind::Fault { gva: fault.gva, gpa: fault.gpa, access: fault.access }
        }
        kind::DESCRIPTOR => {
            // SAFETY: as above.
            let table = unsafe { detail.desc };
            Kind::Descriptor { table: table.descriptor, write: table.write != 0 }
        }
        kind::CPUID => {
            // SAFETY: as above.
            let cpuid = unsafe { detail.cpuid };
            Kind::Cpuid { leaf: cpuid.function, subleaf: cpuid.index, len: cpuid.insn_length }
        }
        kind::SINGLESTEP => Kind::SingleStep,
        kind::PAUSE => Kind::Pause,
        kind::UNHOOK => Kind::Unhook,
        other => Kind::Other(other),
    }
}

/// What crate kvmi calls it; `None` for the kinds that it does not know.
fn named(kind: &Kind) -> Option<KVMiEventType> {
    Some(match *kind {
        Kind::Pause => KVMiEventType::PauseVCPU,
        // It sends the new value alone.
        Kind::Cr { old, new, .. } => KVMiEventType::Cr { cr_type: KVMiCr::Cr3, new, old },
        Kind::Msr { msr, old, new } => KVMiEventType::Msr { msr_type: msr, new, old },
        Kind::Breakpoint { gpa, len } => KVMiEventType::Breakpoint { gpa, insn_len: len },
        Kind::Fault { gva, gpa, .. } => {
            KVMiEventType::Pagefault { gva, gpa, access: KVMiPageAccess::NIL, view: 0 }
        }
        _ => return None,
    })
}

/// The next event that is there.
pub fn next(handles: &Handles) -> Answer<Option<(Told, Event)>> {
    // SAFETY: the domain is open until it is closed.
    let waited = unsafe { sys::kvmi_wait_event(handles.dom(), 0) };
    if waited != 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::ETIMEDOUT) {
            return Ok(None);
        }
        let why = format!("the hypervisor sent what is no event, or left: {error}");
        return Err(Refusal::Gone(why));
    }
    let mut event = ptr::null_mut();
    // SAFETY: as above, and the pointer is ours to be set.
    let popped = unsafe { sys::kvmi_pop_event(handles.dom(), &raw mut event) };
    if popped != 0 || event.is_null() {
        return Ok(None);
    }
    // SAFETY: libkvmi has made it for us alone, and it is freed by `owned` below.
    let found = unsafe { &*event };
    let common = &found.event.common;
    let kind = kind_of(common.event, &found.event.__bindgen_anon_1);
    let arch = &common.arch;
    let view = match kind {
        // SAFETY: the kind says which part it is; all are plain numbers.
        Kind::Fault { .. } => unsafe { found.event.__bindgen_anon_1.page_fault }.view,
        _ => arch.view,
    };
    let raw = copy::raw(&arch.regs, &arch.sregs, Vec::new());
    let told = Told { seq: found.seq, vcpu: common.vcpu, view, raw, kind };
    let ev_type = named(&kind).unwrap_or(KVMiEventType::PauseVCPU);
    let owned = KVMiEvent { vcpu: common.vcpu, ev_type, ffi_event: event };
    Ok(Some((told, Event(owned))))
}

/// An answer as the protocol has it for every kind: two headers.
#[repr(C)]
struct Plain {
    vcpu: sys::kvmi_vcpu_hdr,
    reply: sys::kvmi_event_reply,
}

/// Answers an event of a kind that crate kvmi does not know.
fn plain(handles: &Handles, told: &Told, number: u8, action: u8) -> Answer<()> {
    let vcpu = sys::kvmi_vcpu_hdr { vcpu: told.vcpu, ..Default::default() };
    let reply = sys::kvmi_event_reply { action, event: number, ..Default::default() };
    let answer = Plain { vcpu, reply };
    let data = (&raw const answer).cast();
    // SAFETY: the domain is open, and the bytes are those of the structure.
    let result = unsafe { sys::kvmi_reply_event(handles.dom(), told.seq, data, size_of::<Plain>()) };
    if result == 0 { Ok(()) } else { Err(gone(&io::Error::last_os_error())) }
}

/// An answer that can't be sent ends the connection, whatever the reason: the vCPU waits for it.
pub fn gone(error: &io::Error) -> Refusal {
    match refusal(error) {
        Refusal::Errno(_) => Refusal::Gone(format!("an answer could not be sent: {error}")),
        gone @ Refusal::Gone(_) => gone,
    }
}

fn number(kind: &Kind) -> u8 {
    match kind {
        Kind::SingleStep => kind::SINGLESTEP,
        Kind::Descriptor { .. } => kind::DESCRIPTOR,
        Kind::Cpuid { .. } => kind::CPUID,
        Kind::Other(number) => *number,
        Kind::Cr { .. } => kind::CR,
        Kind::Msr { .. } => kind::MSR,
        Kind::Breakpoint { .. } => kind::BREAKPOINT,
        Kind::Fault { .. } => kind::PF,
        Kind::Pause => kind::PAUSE,
        Kind::Unhook => kind::UNHOOK,
    }
}

/// Answers an event.
pub fn reply(
    kvmi: &impl kvmi::KVMIntrospectable,
    handles: &Handles,
    told: &Told,
    mut event: Event,
    reply: Reply,
) -> Answer<()> {
    let action = if reply == Reply::Retry { KVMiEventReply::Retry } else { KVMiEventReply::Continue };
    if named(&told.kind).is_none() {
        return plain(handles, told, number(&told.kind), u8::from(reply == Reply::Retry));
    }
    if let Reply::Value(value) = reply {
        match &mut event.0.ev_type {
            KVMiEventType::Cr { new, .. } | KVMiEventType::Msr { new, .. } => *new = value,
            _ => {}
        }
    }
    kvmi.reply(&event.0, action).map_err(|error| gone(&error))
}
