//! Sums, differences and logic.

use super::flags::{self, AF, CF, OF, PF, SF, STATUS, ZF};
use super::operand::mask;
use super::{Outcome, Step};

/// How a result and its flags come from two operands of a size in bytes, and the carry flag.
type Binary = fn(size: u32, a: u64, b: u64, carry: bool) -> (u64, u64);

pub(super) const ADD: Binary = |size, a, b, _| flags::add(size, a, b, false);
pub(super) const ADC: Binary = flags::add;
pub(super) const SUB: Binary = |size, a, b, _| flags::sub(size, a, b, false);
pub(super) const SBB: Binary = flags::sub;
pub(super) const AND: Binary = |size, a, b, _| logic(size, a & b);
pub(super) const OR: Binary = |size, a, b, _| logic(size, a | b);
pub(super) const XOR: Binary = |size, a, b, _| logic(size, a ^ b);

/// CF and OF are clear; AF is undefined and cleared too.
fn logic(size: u32, result: u64) -> (u64, u64) {
    (result, flags::of_result(size, result))
}

/// Combines both operands into the first.
pub(super) fn binary(s: &mut Step, op: Binary) -> Outcome {
    let old = s.read_for_write(0)?;
    let (result, flags) = combine(s, op, old)?;
    s.write(0, result)?;
    s.set_flags(STATUS, flags);
    s.next()
}

/// Combines both operands for the flags only.
pub(super) fn compare(s: &mut Step, op: Binary) -> Outcome {
    let old = s.read(0)?;
    let (_, flags) = combine(s, op, old)?;
    s.set_flags(STATUS, flags);
    s.next()
}

fn combine(s: &mut Step, op: Binary, a: u64) -> Result<(u64, u64), super::Exception> {
    let size = s.size(0);
    let b = s.read(1)? & mask(size);
    Ok(op(size, a, b, s.flag(CF)))
}

/// INC and DEC: adding or subtracting 1, with CF left as it is.
pub(super) fn count(s: &mut Step, op: Binary) -> Outcome {
    let old = s.read_for_write(0)?;
    let (result, flags) = op(s.size(0), old, 1, false);
    s.write(0, result)?;
    s.set_flags(OF | SF | ZF | AF | PF, flags);
    s.next()
}

/// NEG.
pub(super) fn neg(s: &mut Step) -> Outcome {
    let old = s.read_for_write(0)?;
    let (result, flags) = flags::sub(s.size(0), 0, old, false);
    s.write(0, result)?;
    s.set_flags(STATUS, flags);
    s.next()
}

/// NOT, which leaves the flags.
pub(super) fn not(s: &mut Step) -> Outcome {
    let old = s.read_for_write(0)?;
    s.write(0, !old)?;
    s.next()
}
