//! Registers in Xen's records, by a table: which register, which record, where.

use vmtree_api::x86::{Reg, Registers, Segment, Table};
use vmtree_api::{RegId, RegValue};

use super::records::{Records, half, kind, put, word};
use crate::events::wire::XCR0_AT_FIRST;

/// The bytes of a vCPU's record of registers.
pub const CPU_BYTES: usize = 1032;

/// Where a register lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// A word of the record of registers.
    Word(usize),
    /// A segment: its number among those of the record.
    Segment(usize),
    /// A descriptor table: its number among the limits and bases.
    Table(usize),
    /// CR8, which is the task priority of the local APIC.
    TaskPriority,
    /// XCR0 of the extended state.
    Xcr0,
    /// The page attribute table, beside the MTRRs.
    Pat,
    /// The base of the local APIC.
    ApicBase,
}

const SELECTORS: usize = 736;
const LIMITS: usize = 768;
const BASES: usize = 808;
const RIGHTS: usize = 888;
const TPR: usize = 0x80;
const XCR0: usize = 8;

/// The records that a write of these may change, beside those of registers.
#[must_use]
pub fn record(place: Place) -> u16 {
    match place {
        Place::Word(_) | Place::Segment(_) | Place::Table(_) => kind::CPU,
        Place::TaskPriority => kind::LAPIC_REGS,
        Place::Xcr0 => kind::XSAVE,
        Place::Pat => kind::MTRR,
        Place::ApicBase => kind::LAPIC,
    }
}

/// Where each register lies.
#[must_use]
pub fn place(reg: Reg) -> Place {
    use Place::{Segment, Table, Word};
    match reg {
        Reg::Rax => Word(512),
        Reg::Rbx => Word(520),
        Reg::Rcx => Word(528),
        Reg::Rdx => Word(536),
        Reg::Rbp => Word(544),
        Reg::Rsi => Word(552),
        Reg::Rdi => Word(560),
        Reg::Rsp => Word(568),
        Reg::R8 => Word(576),
        Reg::R9 => Word(584),
        Reg::R10 => Word(592),
        Reg::R11 => Word(600),
        Reg::R12 => Word(608),
        Reg::R13 => Word(616),
        Reg::R14 => Word(624),
        Reg::R15 => Word(632),
        Reg::Rip => Word(640),
        Reg::Rflags => Word(648),
        Reg::Cr0 => Word(656),
        Reg::Cr2 => Word(664),
        Reg::Cr3 => Word(672),
        Reg::Cr4 => Word(680),
        Reg::Dr0 => Word(688),
        Reg::Dr1 => Word(696),
        Reg::Dr2 => Word(704),
        Reg::Dr3 => Word(712),
        Reg::Dr6 => Word(720),
        Reg::Dr7 => Word(728),
        Reg::Cs => Segment(0),
        Reg::Ds => Segment(1),
        Reg::Es => Segment(2),
        Reg::Fs => Segment(3),
        Reg::Gs => Segment(4),
        Reg::Ss => Segment(5),
        Reg::Tr => Segment(6),
        Reg::Ldtr => Segment(7),
        Reg::Idtr => Table(8),
        Reg::Gdtr => Table(9),
        Reg::SysenterCs => Word(920),
        Reg::SysenterEsp => Word(928),
        Reg::SysenterEip => Word(936),
        Reg::KernelGsBase => Word(944),
        Reg::Lstar => Word(960),
        Reg::Star => Word(968),
        Reg::Cstar => Word(976),
        Reg::Fmask => Word(984),
        Reg::Efer => Word(992),
        Reg::TscAux => Word(1000),
        Reg::Tsc => Word(1008),
        Reg::Cr8 => Place::TaskPriority,
        Reg::Xcr0 => Place::Xcr0,
        Reg::Pat => Place::Pat,
        Reg::ApicBase => Place::ApicBase,
    }
}

/// Bits 8-11 of Xen's form are bits 12-15 of the manual's.
fn rights(packed: u32) -> u16 {
    ((packed & 0xff) | ((packed & 0xf00) << 4)) as u16
}

fn packed(rights: u16) -> u32 {
    u32::from(rights & 0xff) | (u32::from(rights & 0xf000) >> 4)
}

/// A register out of a vCPU's records; `None` where the vCPU has no such record.
#[must_use]
pub fn get(records: &Records, vcpu: u32, reg: Reg) -> Option<RegValue> {
    let place = place(reg);
    let record = records.get(record(place), vcpu);
    Some(match place {
        Place::Word(at) => RegValue::Word(word(record?, at)),
        Place::Segment(n) => {
            let record = record?;
            RegValue::Segment(Segment {
                selector: half(record, SELECTORS + 4 * n) as u16,
                base: word(record, BASES + 8 * n),
                limit: half(record, LIMITS + 4 * n),
                attr: rights(half(record, RIGHTS + 4 * n)),
            })
        }
        Place::Table(n) => {
            let record = record?;
            let limit = half(record, LIMITS + 4 * n) as u16;
            RegValue::Table(Table { base: word(record, BASES + 8 * n), limit })
        }
        Place::TaskPriority => RegValue::Word(u64::from(half(record?, TPR) >> 4 & 0xf)),
        // Xen keeps none for a vCPU that has not written it.
        Place::Xcr0 => RegValue::Word(match record.map_or(0, |record| word(record, XCR0)) {
            0 => XCR0_AT_FIRST,
            value => value,
        }),
        Place::Pat | Place::ApicBase => RegValue::Word(word(record?, 0)),
    })
}

/// Puts a register into a vCPU's records; false where the vCPU has no such record.
pub fn set(records: &mut Records, vcpu: u32, reg: Reg, value: RegValue) -> bool {
    let place = place(reg);
    let Some(record) = records.get_mut(record(place), vcpu) else { return false };
    match (place, value) {
        (Place::Word(at), RegValue::Word(value)) => put(record, at, &value.to_le_bytes()),
        (Place::Segment(n), RegValue::Segment(segment)) => {
            put(record, SELECTORS + 4 * n, &u32::from(segment.selector).to_le_bytes());
            put(record, BASES + 8 * n, &segment.base.to_le_bytes());
            put(record, LIMITS + 4 * n, &segment.limit.to_le_bytes());
            put(record, RIGHTS + 4 * n, &packed(segment.attr).to_le_bytes());
        }
        (Place::Table(n), RegValue::Table(table)) => {
            put(record, BASES + 8 * n, &table.base.to_le_bytes());
            put(record, LIMITS + 4 * n, &u32::from(table.limit).to_le_bytes());
        }
        (Place::TaskPriority, RegValue::Word(value)) => {
            put(record, TPR, &((value as u32 & 0xf) << 4).to_le_bytes());
        }
        (Place::Xcr0, RegValue::Word(value)) => {
            // What was ever on, which decides how much of the state is kept.
            let ever = word(record, XCR0 + 8) | value;
            put(record, XCR0, &value.to_le_bytes());
            put(record, XCR0 + 8, &ever.to_le_bytes());
        }
        (Place::Pat | Place::ApicBase, RegValue::Word(value)) => put(record, 0, &value.to_le_bytes()),
        _ => return false,
    }
    true
}

/// All registers of a vCPU; those without a record are zero.
#[must_use]
pub fn all(records: &Records, vcpu: u32) -> Registers {
    let mut regs = Registers::default();
    for reg in (0..).map_while(|id| Reg::from_id(RegId(id))) {
        if let Some(value) = get(records, vcpu, reg) {
            regs.set(reg, value);
        }
    }
    regs
}

#[cfg(test)]
mod tests {
    use super::super::records::tests::row;
    use super::*;
    use proptest::prelude::*;

    fn blank() -> Records {
        let records = [
            (kind::HEADER, 0, vec![0; 24]),
            (kind::CPU, 0, vec![0; CPU_BYTES]),
            (kind::LAPIC, 0, vec![0; 32]),
            (kind::LAPIC_REGS, 0, vec![0; 1024]),
            (kind::MTRR, 0, vec![0; 232]),
            (kind::XSAVE, 0, vec![0; 600]),
        ];
        Records::parse(row(&records)).unwrap()
    }

    fn value(reg: Reg, number: u64) -> RegValue {
        let attr = (number as u16) & 0xf0ff;
        match Registers::default().get(reg) {
            RegValue::Word(_) if reg == Reg::Cr8 => RegValue::Word(number & 0xf),
            RegValue::Word(_) if reg == Reg::Xcr0 => RegValue::Word(number | 1),
            RegValue::Word(_) => RegValue::Word(number),
            RegValue::Segment(_) => RegValue::Segment(Segment {
                selector: number as u16,
                base: number,
                limit: number as u32,
                attr,
            }),
            RegValue::Table(_) => RegValue::Table(Table { base: number, limit: number as u16 }),
        }
    }

    proptest! {
        #[test]
        fn each_register_has_a_place_of_its_own(numbers in proptest::collection::vec(any::<u64>(), 64)) {
            let mut records = blank();
            let regs: Vec<Reg> = (0..).map_while(|id| Reg::from_id(RegId(id))).collect();
            for (reg, number) in regs.iter().zip(&numbers) {
                prop_assert!(set(&mut records, 0, *reg, value(*reg, *number)));
            }
            let all = all(&records, 0);
            for (reg, number) in regs.iter().zip(&numbers) {
                prop_assert_eq!(all.get(*reg), value(*reg, *number), "{:?}", reg);
            }
        }
    }

    #[test]
    fn what_a_vcpu_has_no_record_of_can_not_be_set() {
        let mut records = Records::parse(row(&[(kind::CPU, 0, vec![0; CPU_BYTES])])).unwrap();
        assert!(!set(&mut records, 0, Reg::Xcr0, RegValue::Word(3)));
        assert_eq!(get(&records, 0, Reg::Xcr0), Some(RegValue::Word(XCR0_AT_FIRST)));
        assert!(!set(&mut records, 1, Reg::Rax, RegValue::Word(3)));
        assert_eq!(get(&records, 0, Reg::Cr8), None);
    }
}
