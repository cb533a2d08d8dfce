//! Shifts and rotates. A masked count of 0 leaves every flag. Where the manual leaves OF undefined (counts other
//! than 1), the formula of count 1 is used; AF is cleared by shifts.

use super::flags::{self, CF, OF, STATUS, sign, when};
use super::operand::{mask, sign_extend};
use super::{Outcome, Step};

/// The result and the flags of moving an operand of `bits` bits by a count that is not 0.
type Move = fn(operand: Operand, count: u32) -> (u64, u64);

/// What a shift works on.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    value: u64,
    size: u32,
    bits: u32,
    carry: bool,
}

pub(super) const SHL: Move = |op, count| {
    let wide = u128::from(op.value) << count;
    let carry = wide >> op.bits & 1 != 0;
    shifted(op, wide as u64, carry, |result| sign(op.size, result) != carry)
};
pub(super) const SHR: Move = |op, count| {
    let carry = op.value >> (count - 1) & 1 != 0;
    shifted(op, op.value >> count, carry, |_| sign(op.size, op.value))
};
pub(super) const SAR: Move = |op, count| {
    let value = sign_extend(op.value, op.size);
    shifted(op, (value >> count) as u64, value >> (count - 1) & 1 != 0, |_| false)
};
pub(super) const ROL: Move = |op, count| {
    let result = rotate_left(u128::from(op.value), op.bits, count % op.bits) as u64;
    let carry = result & 1 != 0;
    (result, when(carry, CF) | when(sign(op.size, result) != carry, OF))
};
pub(super) const ROR: Move = |op, count| {
    let result = rotate_left(u128::from(op.value), op.bits, op.bits - count % op.bits) as u64;
    (result, when(sign(op.size, result), CF) | top_bits_differ(op, result))
};
pub(super) const RCL: Move = |op, count| through_carry(op, count % (op.bits + 1), false);
pub(super) const RCR: Move = |op, count| through_carry(op, op.bits + 1 - count % (op.bits + 1), true);

fn shifted(op: Operand, result: u64, carry: bool, overflow: impl Fn(u64) -> bool) -> (u64, u64) {
    let result = result & mask(op.size);
    (result, flags::of_result(op.size, result) | when(carry, CF) | when(overflow(result), OF))
}

/// OF after a right rotation: whether the two highest bits differ.
fn top_bits_differ(op: Operand, result: u64) -> u64 {
    when(sign(op.size, result ^ result << 1), OF)
}

/// Rotates the low `width` bits, at most 65, by at most `width`.
fn rotate_left(value: u128, width: u32, count: u32) -> u128 {
    let rotated = if count == width { value } else { value << count | value >> (width - count) };
    rotated & ((1 << width) - 1)
}

/// Rotates left with CF as one bit more on top.
fn through_carry(op: Operand, count: u32, right: bool) -> (u64, u64) {
    let whole = u128::from(op.carry) << op.bits | u128::from(op.value);
    let rotated = rotate_left(whole, op.bits + 1, count);
    let result = rotated as u64 & mask(op.size);
    let carry = rotated >> op.bits & 1 != 0;
    let overflow = if right { top_bits_differ(op, result) } else { when(sign(op.size, result) != carry, OF) };
    (result, when(carry, CF) | overflow)
}

/// A count is masked to 6 bits for 64-bit operands, to 5 for others.
fn masked(count: u64, size: u32) -> u32 {
    count as u32 & if size == 8 { 63 } else { 31 }
}

/// SHL, SHR, SAR.
pub(super) fn shift(s: &mut Step, by: Move) -> Outcome {
    apply(s, by, STATUS)
}

/// ROL, ROR, RCL, RCR: only CF and OF change.
pub(super) fn rotate(s: &mut Step, by: Move) -> Outcome {
    apply(s, by, CF | OF)
}

fn apply(s: &mut Step, by: Move, changed: u64) -> Outcome {
    let size = s.size(0);
    let value = s.read_for_write(0)?;
    let count = masked(s.read(1)?, size);
    let operand = Operand { value, size, bits: size * 8, carry: s.flag(CF) };
    let (result, flags) = if count == 0 { (value, 0) } else { by(operand, count) };
    s.write(0, result)?;
    if count != 0 {
        s.set_flags(changed, flags);
    }
    s.next()
}

/// SHLD, and SHRD if `right`. A 16-bit shift by more than 16 has an undefined result; zeros move in then.
pub(super) fn double(s: &mut Step, right: bool) -> Outcome {
    let size = s.size(0);
    let bits = size * 8;
    let value = s.read_for_write(0)?;
    let filler = s.read(1)?;
    let count = masked(s.read(2)?, size);
    if count == 0 {
        s.write(0, value)?;
        return s.next();
    }
    let (result, carry) = if right {
        let pair = u128::from(filler) << bits | u128::from(value);
        (pair >> count, pair >> (count - 1))
    } else {
        let pair = u128::from(value) << bits | u128::from(filler);
        (pair << count >> bits, pair >> (2 * bits - count))
    };
    let result = result as u64 & mask(size);
    let overflow = when(sign(size, result ^ value), OF);
    s.write(0, result)?;
    s.set_flags(STATUS, flags::of_result(size, result) | when(carry & 1 != 0, CF) | overflow);
    s.next()
}
