//! KVM's register structures in plain ones, and back; and the read of all registers, which crate kvmi has for six MSRs only.

use kvmi_sys as sys;

use super::call::Handles;
use crate::port::{Answer, General, Raw, RawSegment};

fn segment(from: &sys::kvm_segment) -> RawSegment {
    RawSegment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        kind: from.type_,
        present: from.present,
        dpl: from.dpl,
        db: from.db,
        s: from.s,
        l: from.l,
        g: from.g,
        avl: from.avl,
        unusable: from.unusable,
    }
}

/// The general registers.
pub fn general(from: &sys::kvm_regs) -> General {
    [
        from.rax,
        from.rbx,
        from.rcx,
        from.rdx,
        from.rsi,
        from.rdi,
        from.rsp,
        from.rbp,
        from.r8,
        from.r9,
        from.r10,
        from.r11,
        from.r12,
        from.r13,
        from.r14,
        from.r15,
        from.rip,
        from.rflags,
    ]
}

/// The general registers as KVM has them.
pub fn regs(from: &General) -> sys::kvm_regs {
    let [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags] = *from;
    sys::kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    }
}

/// All of them.
pub fn raw(regs: &sys::kvm_regs, sregs: &sys::kvm_sregs, msrs: Vec<(u32, u64)>) -> Raw {
    let s = sregs;
    Raw {
        general: general(regs),
        segments: [&s.cs, &s.ds, &s.es, &s.fs, &s.gs, &s.ss, &s.tr, &s.ldt].map(segment),
        tables: [&s.gdt, &s.idt].map(|table| (table.base, table.limit)),
        control: [s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer, s.apic_base],
        msrs,
    }
}

/// The most MSRs of one read.
const MOST: usize = 64;

/// `struct kvm_msrs` with room: a count, and then entries.
#[repr(C)]
struct Msrs {
    count: u32,
    pad: u32,
    entries: [sys::kvm_msr_entry; MOST],
}

/// As `kvmi_get_registers`.
pub fn registers(handles: &Handles, vcpu: u16, indexes: &[u32]) -> Answer<Raw> {
    let mut msrs = Msrs { count: 0, pad: 0, entries: [sys::kvm_msr_entry::default(); MOST] };
    for (entry, index) in msrs.entries.iter_mut().zip(indexes) {
        entry.index = *index;
        msrs.count += 1;
    }
    let (mut general, mut special, mut mode) = (sys::kvm_regs::default(), sys::kvm_sregs::default(), 0);
    let all = (&raw mut msrs).cast::<sys::kvm_msrs>();
    // SAFETY: the domain is open; the structures are ours, and the last has as many entries as it says.
    let result = unsafe {
        sys::kvmi_get_registers(handles.dom(), vcpu, &raw mut general, &raw mut special, all, &raw mut mode)
    };
    if result != 0 {
        return Err(super::call::refusal(&std::io::Error::last_os_error()));
    }
    let asked = msrs.entries.iter().zip(indexes);
    let values = asked.map(|(entry, index)| (*index, entry.data)).collect();
    Ok(raw(&general, &special, values))
}
