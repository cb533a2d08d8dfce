//! Moving lanes about.

use super::super::{Outcome, Step};
use super::lanes::{build, lane};

/// PUNPCKL and PUNPCKH: lanes of the low or high halves of both operands, in turn.
pub(super) fn unpack(s: &mut Step, bits: u32, high: bool) -> Outcome {
    let b = s.read_vector(1, true)?;
    let a = s.vector(0);
    let first = if high { 64 / bits } else { 0 };
    let result = build(bits, |index| lane(if index % 2 == 0 { a } else { b }, bits, first + index / 2));
    s.set_vector(0, result);
    s.next()
}

/// Which lane of four the immediate names for lane `index`.
fn selected(order: u64, index: u32) -> u32 {
    (order >> (index * 2) & 3) as u32
}

/// PSHUFD.
pub(super) fn doublewords(s: &mut Step) -> Outcome {
    let value = s.read_vector(1, true)?;
    let order = s.read(2)?;
    s.set_vector(0, build(32, |index| lane(value, 32, selected(order, index))));
    s.next()
}

/// PSHUFLW (`low` is 0) and PSHUFHW (64): the words of the half that starts at bit `low`.
pub(super) fn words(s: &mut Step, low: u32) -> Outcome {
    let value = s.read_vector(1, true)?;
    let order = s.read(2)?;
    let half = value >> low;
    let shuffled =
        (0..4).fold(0, |all, index| all | u128::from(lane(half, 16, selected(order, index))) << (index * 16));
    let kept = value & !(u128::from(u64::MAX) << low);
    s.set_vector(0, kept | shuffled << low);
    s.next()
}

/// SHUFPS: two lanes of the first operand, then two of the second.
pub(super) fn of_two(s: &mut Step) -> Outcome {
    let b = s.read_vector(1, true)?;
    let a = s.vector(0);
    let order = s.read(2)?;
    let result = build(32, |index| lane(if index < 2 { a } else { b }, 32, selected(order, index)));
    s.set_vector(0, result);
    s.next()
}

/// PSLLDQ and PSRLDQ: a shift of the whole by bytes.
pub(super) fn bytes(s: &mut Step, shift: fn(u128, u32) -> u128) -> Outcome {
    let count = s.read(1)?;
    let result = if count < 16 { shift(s.vector(0), count as u32 * 8) } else { 0 };
    s.set_vector(0, result);
    s.next()
}
