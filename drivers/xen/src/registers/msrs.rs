//! MSRs by index: those that Xen's records of a vCPU have. It gives a tool no others of an HVM guest.

use vmtree_api::RegValue;
use vmtree_api::x86::Reg;

use super::convert;
use super::records::{Records, half, kind, put, word};

/// MSRs that are registers of the table.
const NAMED: &[(u32, Reg)] = &[
    (0x10, Reg::Tsc),
    (0x1b, Reg::ApicBase),
    (0x174, Reg::SysenterCs),
    (0x175, Reg::SysenterEsp),
    (0x176, Reg::SysenterEip),
    (0x277, Reg::Pat),
    (0xc000_0080, Reg::Efer),
    (0xc000_0081, Reg::Star),
    (0xc000_0082, Reg::Lstar),
    (0xc000_0083, Reg::Cstar),
    (0xc000_0084, Reg::Fmask),
    (0xc000_0102, Reg::KernelGsBase),
    (0xc000_0103, Reg::TscAux),
];
/// The bases of FS and GS.
const BASES: &[(u32, Reg)] = &[(0xc000_0100, Reg::Fs), (0xc000_0101, Reg::Gs)];
const FIXED: &[u32] = &[0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];

/// Where an MSR is that is no register of the table.
fn at(records: &Records, vcpu: u32, index: u32) -> Option<(u16, usize)> {
    let mtrr = match index {
        0x200..=0x20f => Some(8 + 8 * (index - 0x200) as usize),
        0x2ff => Some(8 + 8 * 16 + 8 * 11 + 8),
        0xfe => Some(8 + 8 * 16 + 8 * 11),
        _ => FIXED.iter().position(|fixed| *fixed == index).map(|n| 8 + 8 * 16 + 8 * n),
    };
    if let Some(at) = mtrr {
        return records.get(kind::MTRR, vcpu).map(|_| (kind::MTRR, at));
    }
    let more = records.get(kind::MSR, vcpu)?;
    let count = half(more, 0) as usize;
    // A count, then index, padding and value of each.
    let places = (0..count).map(|n| 8 + 16 * n).take_while(|at| at + 16 <= more.len());
    places.into_iter().find(|at| half(more, *at) == index).map(|at| (kind::MSR, at + 8))
}

/// The value of an MSR; `None` where the records have none of this index.
#[must_use]
pub fn get(records: &Records, vcpu: u32, index: u32) -> Option<u64> {
    if let Some((_, reg)) = NAMED.iter().find(|(its, _)| *its == index) {
        return match convert::get(records, vcpu, *reg)? {
            RegValue::Word(value) => Some(value),
            _ => None,
        };
    }
    if let Some((_, reg)) = BASES.iter().find(|(its, _)| *its == index) {
        return match convert::get(records, vcpu, *reg)? {
            RegValue::Segment(segment) => Some(segment.base),
            _ => None,
        };
    }
    let (kind, at) = at(records, vcpu, index)?;
    Some(word(records.get(kind, vcpu)?, at))
}

/// What becomes of a write: a register of the table, or a record that is changed by `put`.
pub enum Write {
    /// Of this register.
    Register(Reg, RegValue),
    /// Of this type of record.
    Record(u16),
}

/// Prepares a write; `None` where the records have no MSR of this index, or it is read-only.
pub fn set(records: &mut Records, vcpu: u32, index: u32, value: u64) -> Option<Write> {
    if let Some((_, reg)) = NAMED.iter().find(|(its, _)| *its == index) {
        return Some(Write::Register(*reg, RegValue::Word(value)));
    }
    if let Some((_, reg)) = BASES.iter().find(|(its, _)| *its == index) {
        let RegValue::Segment(segment) = convert::get(records, vcpu, *reg)? else { return None };
        return Some(Write::Register(
            *reg,
            RegValue::Segment(vmtree_api::x86::Segment { base: value, ..segment }),
        ));
    }
    let (kind, at) = at(records, vcpu, index).filter(|_| index != 0xfe)?;
    put(records.get_mut(kind, vcpu)?, at, &value.to_le_bytes());
    Some(Write::Record(kind))
}

/// The MSRs that are watched where none is named: those that a guest's kernel sets up and switches.
pub const WATCHED: &[u32] = &[
    0x1b,
    0x174,
    0x175,
    0x176,
    0x277,
    0xc000_0080,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0xc000_0103,
];

#[cfg(test)]
mod tests {
    use super::super::convert::CPU_BYTES;
    use super::super::records::tests::row;
    use super::*;

    fn records() -> Records {
        let mut more = vec![0; 8 + 32];
        put(&mut more, 0, &2_u32.to_le_bytes());
        put(&mut more, 8, &0x48_u32.to_le_bytes());
        put(&mut more, 24, &0xda0_u32.to_le_bytes());
        let all = [(kind::CPU, 0, vec![0; CPU_BYTES]), (kind::MTRR, 0, vec![0; 240]), (kind::MSR, 0, more)];
        Records::parse(row(&all)).unwrap()
    }

    #[test]
    fn each_kind_of_place_is_read_and_written() {
        let mut records = records();
        for index in [0x48, 0xda0, 0x200, 0x20f, 0x250, 0x26f, 0x2ff] {
            let value = 0x1234_5678_0000_0000 | u64::from(index);
            assert!(matches!(set(&mut records, 0, index, value), Some(Write::Record(_))), "{index:#x}");
        }
        for index in [0x48, 0xda0, 0x200, 0x20f, 0x250, 0x26f, 0x2ff] {
            assert_eq!(get(&records, 0, index), Some(0x1234_5678_0000_0000 | u64::from(index)), "{index:#x}");
        }
        for (index, _) in NAMED.iter().chain(BASES).filter(|(_, reg)| *reg != Reg::ApicBase) {
            assert_eq!(get(&records, 0, *index), Some(0), "{index:#x}");
            assert!(matches!(set(&mut records, 0, *index, 1), Some(Write::Register(..))));
        }
        assert_eq!((get(&records, 0, 0x99), get(&records, 1, 0xc000_0080)), (None, None));
        assert!(set(&mut records, 0, 0xfe, 1).is_none() && set(&mut records, 0, 0x99, 1).is_none());
    }
}
