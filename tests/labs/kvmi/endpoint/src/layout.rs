//! KVM's layouts of a vCPU's registers (linux/kvm.h: kvm_regs, kvm_sregs), and what goes with each event.

use vmtree_api::x86::{Reg, Registers, Segment, Table};
use vmtree_api::{RegId, RegValue};

use crate::wire::{BadSize, Fields};

/// The order of kvm_regs.
const GENERAL: [Reg; 18] = [
    Reg::Rax,
    Reg::Rbx,
    Reg::Rcx,
    Reg::Rdx,
    Reg::Rsi,
    Reg::Rdi,
    Reg::Rsp,
    Reg::Rbp,
    Reg::R8,
    Reg::R9,
    Reg::R10,
    Reg::R11,
    Reg::R12,
    Reg::R13,
    Reg::R14,
    Reg::R15,
    Reg::Rip,
    Reg::Rflags,
];

/// CS.L and CS.D, and the paging mode, say how wide an address is.
const ATTR_L: u16 = 1 << 13;
const ATTR_D: u16 = 1 << 14;
const EFER_LMA: u64 = 1 << 10;

fn general(regs: &Registers, to: &mut Vec<u8>) {
    for reg in GENERAL {
        let RegValue::Word(value) = regs.get(reg) else { continue };
        to.extend(value.to_le_bytes());
    }
}

fn segment(segment: &Segment, to: &mut Vec<u8>) {
    let bit = |n: u16| (segment.attr >> n & 1) as u8;
    to.extend(segment.base.to_le_bytes());
    to.extend(segment.limit.to_le_bytes());
    to.extend(segment.selector.to_le_bytes());
    let kind = (segment.attr & 15) as u8;
    let level = (segment.attr >> 5 & 3) as u8;
    to.extend([kind, bit(7), level, bit(14), bit(4), bit(13), bit(15), bit(12), 1 - bit(7), 0]);
}

fn table(table: &Table, to: &mut Vec<u8>) {
    to.extend(table.base.to_le_bytes());
    to.extend(table.limit.to_le_bytes());
    to.extend([0; 6]);
}

fn special(regs: &Registers, to: &mut Vec<u8>) {
    for one in [&regs.cs, &regs.ds, &regs.es, &regs.fs, &regs.gs, &regs.ss, &regs.tr, &regs.ldtr] {
        segment(one, to);
    }
    table(&regs.gdtr, to);
    table(&regs.idtr, to);
    let words = [regs.cr0, regs.cr2, regs.cr3, regs.cr4, regs.cr8, regs.efer, regs.apic_base];
    words.into_iter().chain([0; 4]).for_each(|word| to.extend(word.to_le_bytes()));
}

/// Bytes of an address: 2, 4 or 8.
#[must_use]
pub fn mode(regs: &Registers) -> u8 {
    match (regs.efer & EFER_LMA != 0, regs.cs.attr) {
        (true, attr) if attr & ATTR_L != 0 => 8,
        (_, attr) if attr & ATTR_D != 0 => 4,
        _ => 2,
    }
}

/// kvm_regs and kvm_sregs.
#[must_use]
pub fn registers(regs: &Registers) -> Vec<u8> {
    let mut all = Vec::with_capacity(144 + 312);
    general(regs, &mut all);
    special(regs, &mut all);
    all
}

/// kvmi_event: what every event begins with.
#[must_use]
pub fn event(event: u8, vcpu: u16, view: u16, regs: &Registers) -> Vec<u8> {
    let mut all = Vec::with_capacity(544);
    all.extend(544u16.to_le_bytes());
    all.extend(vcpu.to_le_bytes());
    all.extend([event, 0, 0, 0]);
    all.extend([mode(regs), 0]);
    all.extend(view.to_le_bytes());
    all.extend([0; 4]);
    all.extend(registers(regs));
    let msrs = [
        regs.sysenter_cs,
        regs.sysenter_esp,
        regs.sysenter_eip,
        regs.efer,
        regs.star,
        regs.lstar,
        regs.cstar,
        regs.pat,
        regs.kernel_gs_base,
    ];
    msrs.into_iter().for_each(|word| all.extend(word.to_le_bytes()));
    all
}

/// The general registers of a kvm_regs.
///
/// # Errors
/// It has another size.
pub fn general_of(fields: &mut Fields<'_>) -> Result<Vec<(RegId, RegValue)>, BadSize> {
    GENERAL.iter().map(|reg| Ok((reg.id(), RegValue::Word(fields.number(8)?)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_the_sizes_of_kvm() {
        let regs = Registers { rip: 7, ..Registers::default() };
        assert_eq!(registers(&regs).len(), 144 + 312);
        assert_eq!(event(1, 0, 0, &regs).len(), 544);
        let back = general_of(&mut Fields(&registers(&regs))).unwrap();
        assert_eq!(back[16], (Reg::Rip.id(), RegValue::Word(7)));
    }

    #[test]
    fn a_long_mode_code_segment_has_eight_bytes() {
        let cs = Segment { attr: ATTR_L, ..Segment::default() };
        let regs = Registers { efer: EFER_LMA, cs, ..Registers::default() };
        assert_eq!(mode(&regs), 8);
        assert_eq!(mode(&Registers::default()), 2);
    }
}
