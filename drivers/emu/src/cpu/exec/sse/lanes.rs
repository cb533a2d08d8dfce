//! Operations on each lane of a vector by itself.

use iced_x86::OpKind;

use super::super::{Outcome, Step};

/// All bits if `condition`, else none.
pub(super) fn all_if(condition: bool) -> u64 {
    if condition { u64::MAX } else { 0 }
}

pub(super) fn equal(a: u64, b: u64) -> u64 {
    all_if(a == b)
}

/// The lane of `bits` bits, zero-extended.
pub(super) fn lane(value: u128, bits: u32, index: u32) -> u64 {
    (value >> (index * bits)) as u64 & (u64::MAX >> (64 - bits))
}

/// The vector whose lanes `of` gives; what they have beyond `bits` is dropped.
pub(super) fn build(bits: u32, of: impl Fn(u32) -> u64) -> u128 {
    (0..128 / bits)
        .fold(0, |all, index| all | u128::from(of(index) & (u64::MAX >> (64 - bits))) << (index * bits))
}

/// Combines each lane of the first operand with that of the second.
pub(super) fn binary(s: &mut Step, bits: u32, op: fn(u64, u64) -> u64) -> Outcome {
    let b = s.read_vector(1, true)?;
    let a = s.vector(0);
    s.set_vector(0, build(bits, |index| op(lane(a, bits, index), lane(b, bits, index))));
    s.next()
}

/// A shift of one lane of `bits` bits, by any count.
type Shift = fn(value: u64, bits: u32, count: u64) -> u64;

pub(super) const LEFT: Shift = |value, bits, count| if count < u64::from(bits) { value << count } else { 0 };
pub(super) const RIGHT: Shift = |value, bits, count| if count < u64::from(bits) { value >> count } else { 0 };
pub(super) const ARITHMETIC: Shift = |value, bits, count| {
    let unused = 64 - bits;
    let signed = (value << unused) as i64 >> unused;
    (signed >> count.min(63)) as u64
};

/// Shifts each lane by an immediate, or by the low 64 bits of the second operand.
pub(super) fn shift(s: &mut Step, bits: u32, by: Shift) -> Outcome {
    let count = match s.ins.op_kind(1) {
        OpKind::Immediate8 => s.read(1)?,
        _ => s.read_vector(1, true)? as u64,
    };
    let value = s.vector(0);
    s.set_vector(0, build(bits, |index| by(lane(value, bits, index), bits, count)));
    s.next()
}
