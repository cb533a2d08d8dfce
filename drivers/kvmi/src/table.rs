//! THE table of registers: what KVMI gives of each, in the architecture's order. docs/kvmi.md shows it.

use vmtree_api::x86::{REGISTERS, Reg, Registers, Segment, Table};
use vmtree_api::{Error, ErrorKind, RegId, RegOffer, RegValue, RegisterSet, Result};

use crate::port::{General, Raw, RawSegment};

/// How a register is had.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// Of `struct kvm_regs`, at this place: it can be written.
    General(usize),
    /// Of `struct kvm_sregs`.
    Special,
    /// An MSR.
    Msr(u32),
    /// By a command of its own.
    Xcr0,
}

/// The registers that are there. KVMI has neither debug registers nor a way to write another than the general ones.
pub const TABLE: &[(Reg, Way)] = &[
    (Reg::Rax, Way::General(0)),
    (Reg::Rcx, Way::General(2)),
    (Reg::Rdx, Way::General(3)),
    (Reg::Rbx, Way::General(1)),
    (Reg::Rsp, Way::General(6)),
    (Reg::Rbp, Way::General(7)),
    (Reg::Rsi, Way::General(4)),
    (Reg::Rdi, Way::General(5)),
    (Reg::R8, Way::General(8)),
    (Reg::R9, Way::General(9)),
    (Reg::R10, Way::General(10)),
    (Reg::R11, Way::General(11)),
    (Reg::R12, Way::General(12)),
    (Reg::R13, Way::General(13)),
    (Reg::R14, Way::General(14)),
    (Reg::R15, Way::General(15)),
    (Reg::Rip, Way::General(RIP)),
    (Reg::Rflags, Way::General(RFLAGS)),
    (Reg::Cr0, Way::Special),
    (Reg::Cr2, Way::Special),
    (Reg::Cr3, Way::Special),
    (Reg::Cr4, Way::Special),
    (Reg::Cr8, Way::Special),
    (Reg::Xcr0, Way::Xcr0),
    (Reg::Efer, Way::Special),
    (Reg::Es, Way::Special),
    (Reg::Cs, Way::Special),
    (Reg::Ss, Way::Special),
    (Reg::Ds, Way::Special),
    (Reg::Fs, Way::Special),
    (Reg::Gs, Way::Special),
    (Reg::Ldtr, Way::Special),
    (Reg::Tr, Way::Special),
    (Reg::Gdtr, Way::Special),
    (Reg::Idtr, Way::Special),
    (Reg::Star, Way::Msr(0xc000_0081)),
    (Reg::Lstar, Way::Msr(0xc000_0082)),
    (Reg::Cstar, Way::Msr(0xc000_0083)),
    (Reg::Fmask, Way::Msr(0xc000_0084)),
    (Reg::KernelGsBase, Way::Msr(0xc000_0102)),
    (Reg::SysenterCs, Way::Msr(0x174)),
    (Reg::SysenterEsp, Way::Msr(0x175)),
    (Reg::SysenterEip, Way::Msr(0x176)),
    (Reg::Pat, Way::Msr(0x277)),
    (Reg::ApicBase, Way::Special),
    (Reg::Tsc, Way::Msr(0x10)),
    (Reg::TscAux, Way::Msr(0xc000_0103)),
];

/// Places in `struct kvm_regs`.
pub const RIP: usize = 16;
/// As [`RIP`].
pub const RFLAGS: usize = 17;
/// RAX, RBX, RCX and RDX there: CPUID's result in its order.
pub const CPUID: [usize; 4] = [0, 1, 2, 3];

/// The MSRs of the table.
pub fn msrs() -> impl Iterator<Item = u32> {
    TABLE.iter().filter_map(|(_, way)| match way {
        Way::Msr(index) => Some(*index),
        _ => None,
    })
}

/// What is offered, `without` these MSRs, which this host does not give, and with XCR0 where it gives that.
#[must_use]
pub fn offers(without: &[u32], xcr0: bool) -> Vec<RegOffer> {
    let there = |way: &Way| match way {
        Way::Msr(index) => !without.contains(index),
        Way::Xcr0 => xcr0,
        _ => true,
    };
    let rows = TABLE.iter().filter(|(_, way)| there(way));
    rows.map(|(reg, way)| RegOffer { id: reg.id(), writable: matches!(way, Way::General(_)) }).collect()
}

fn segment(raw: &RawSegment) -> Segment {
    let bit = |value: u8, at: u16| u16::from(value & 1) << at;
    let present = if raw.unusable == 0 { raw.present } else { 0 };
    let attr = u16::from(raw.kind & 15) | bit(raw.s, 4) | u16::from(raw.dpl & 3) << 5 | bit(present, 7);
    let attr = attr | bit(raw.avl, 12) | bit(raw.l, 13) | bit(raw.db, 14) | bit(raw.g, 15);
    Segment { selector: raw.selector, base: raw.base, limit: raw.limit, attr }
}

/// The registers of a vCPU in vmtree's order. XCR0 is not among them.
#[must_use]
pub fn registers(raw: &Raw) -> Registers {
    let mut regs = Registers::default();
    for (reg, way) in TABLE {
        let value = match way {
            Way::General(place) => raw.general.get(*place).copied(),
            Way::Msr(index) => raw.msrs.iter().find(|(is, _)| is == index).map(|(_, value)| *value),
            Way::Special | Way::Xcr0 => None,
        };
        if let Some(value) = value {
            regs.set(*reg, RegValue::Word(value));
        }
    }
    let [cs, ds, es, fs, gs, ss, tr, ldtr] = raw.segments.each_ref().map(segment);
    let [gdtr, idtr] = raw.tables.map(|(base, limit)| Table { base, limit });
    let [cr0, cr2, cr3, cr4, cr8, efer, apic_base] = raw.control;
    Registers {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldtr,
        gdtr,
        idtr,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        ..regs
    }
}

/// The registers as the tree takes them.
#[must_use]
pub fn set(raw: &Raw, xcr0: u64) -> RegisterSet {
    RegisterSet::X86_64(Box::new(Registers { xcr0, ..registers(raw) }))
}

/// The name of a register.
#[must_use]
pub fn name(id: RegId) -> &'static str {
    REGISTERS.get(usize::from(id.0)).map_or("?", |def| def.name)
}

/// The general registers after these changes.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for another register, [`ErrorKind::Invalid`] for what the vCPU can't hold.
pub fn changed(before: &General, changes: &[(RegId, RegValue)]) -> Result<General> {
    const OP: &str = "write registers";
    let mut after = *before;
    for (id, value) in changes {
        let name = name(*id);
        let way = TABLE.iter().find(|(reg, _)| reg.id() == *id).map(|(_, way)| *way);
        let (Some(Way::General(place)), RegValue::Word(word)) = (way, value) else {
            let why = format!("{name} can't be set: KVMI sets the general registers, rip and rflags alone");
            return Err(Error::new(ErrorKind::Unsupported, OP, why));
        };
        let refuse = |why: &str| Err(Error::new(ErrorKind::Invalid, OP, format!("{name}: {why}")));
        if place == RIP && (*word as i64) << 16 >> 16 != *word as i64 {
            return refuse("bits 63 to 48 must repeat bit 47");
        }
        if place == RFLAGS && !is_flags(*word) {
            return refuse("bit 1 is always set, and bits that are not defined are always clear");
        }
        if let Some(slot) = after.get_mut(place) {
            *slot = *word;
        }
    }
    Ok(after)
}

fn is_flags(word: u64) -> bool {
    use vmtree_api::x86::bits::{RFLAGS_FIXED, RFLAGS_KNOWN};
    word & !RFLAGS_KNOWN == 0 && word & RFLAGS_FIXED != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rows_are_in_order_and_places_differ() {
        let ids: Vec<u16> = TABLE.iter().map(|(reg, _)| reg.id().0).collect();
        assert!(ids.is_sorted_by(|one, next| one < next));
        let mut places: Vec<usize> = TABLE
            .iter()
            .filter_map(|(_, way)| if let Way::General(place) = way { Some(*place) } else { None })
            .collect();
        places.sort_unstable();
        assert_eq!(places, (0..18).collect::<Vec<_>>());
    }

    #[test]
    fn a_long_mode_code_segment_has_the_manuals_bits() {
        let raw = RawSegment { kind: 11, present: 1, s: 1, l: 1, g: 1, ..RawSegment::default() };
        assert_eq!(segment(&raw).attr, 0xa09b);
        assert_eq!(segment(&RawSegment { unusable: 1, ..raw }).attr & 0x80, 0);
    }

    #[test]
    fn only_general_registers_change_and_only_to_what_they_hold() {
        let before: General = std::array::from_fn(|n| n as u64);
        let rbx = (Reg::Rbx.id(), RegValue::Word(77));
        assert_eq!(changed(&before, &[rbx]).unwrap()[1], 77);
        let kind =
            |reg: Reg, word| changed(&before, &[rbx, (reg.id(), RegValue::Word(word))]).unwrap_err().kind();
        assert_eq!(kind(Reg::Cr3, 0), ErrorKind::Unsupported);
        assert_eq!(kind(Reg::Rip, 1 << 47), ErrorKind::Invalid);
        assert_eq!(kind(Reg::Rflags, 0), ErrorKind::Invalid);
    }

    #[test]
    fn the_docs_show_this_table() {
        let docs = include_str!("../../../docs/kvmi.md");
        for (reg, way) in TABLE {
            let word = match way {
                Way::General(_) => "read and written",
                Way::Special => "read",
                Way::Msr(_) => "read, an MSR",
                Way::Xcr0 => "read, by a command of its own",
            };
            let line = format!("| `{}` | {word} |", name(reg.id()));
            assert!(docs.lines().any(|is| is == line), "docs/kvmi.md has no line {line}");
        }
    }

    proptest! {
        #[test]
        fn general_registers_come_and_go_by_the_same_places(values in prop::array::uniform18(any::<u64>())) {
            let raw = Raw { general: values, ..Raw::default() };
            let regs = registers(&raw);
            prop_assert_eq!((regs.gpr[0], regs.gpr[3], regs.rip), (values[0], values[1], values[16]));
            let changes: Vec<_> = TABLE.iter().filter(|(_, way)| matches!(way, Way::General(place) if *place < RIP))
                .map(|(reg, _)| (reg.id(), regs.get(*reg))).collect();
            prop_assert_eq!(&changed(&[0; 18], &changes).unwrap()[..RIP], &values[..RIP]);
        }
    }
}
