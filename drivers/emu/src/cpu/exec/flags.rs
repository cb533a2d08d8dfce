//! The status flags (Intel SDM volume 1, 3.4.3.1), computed in one place. Operands and results have `size` bytes.

use super::operand::{mask, sign_extend};

pub(super) const CF: u64 = 1;
pub(super) const PF: u64 = 1 << 2;
pub(super) const AF: u64 = 1 << 4;
pub(super) const ZF: u64 = 1 << 6;
pub(super) const SF: u64 = 1 << 7;
pub(super) const TF: u64 = 1 << 8;
pub(super) const IF: u64 = 1 << 9;
pub(super) const DF: u64 = 1 << 10;
pub(super) const OF: u64 = 1 << 11;
pub(super) const IOPL: u64 = 3 << 12;
pub(super) const NT: u64 = 1 << 14;
pub(super) const RF: u64 = 1 << 16;
pub(super) const VM: u64 = 1 << 17;
pub(super) const AC: u64 = 1 << 18;
pub(super) const ID: u64 = 1 << 21;

/// The flags that arithmetic sets.
pub(super) const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// `flag` if `condition`, else none.
pub(super) fn when(condition: bool, flag: u64) -> u64 {
    if condition { flag } else { 0 }
}

/// The highest bit of `value`.
pub(super) fn sign(size: u32, value: u64) -> bool {
    sign_extend(value, size) < 0
}

/// SF, ZF and PF of a result.
pub(super) fn of_result(size: u32, result: u64) -> u64 {
    when(sign(size, result), SF)
        | when(result & mask(size) == 0, ZF)
        | when((result as u8).count_ones().is_multiple_of(2), PF)
}

/// The sum and its flags.
pub(super) fn add(size: u32, a: u64, b: u64, carry: bool) -> (u64, u64) {
    let sum = a.wrapping_add(b).wrapping_add(u64::from(carry)) & mask(size);
    let carries = a & b | (a | b) & !sum;
    (sum, with_carries(size, sum, carries, (a ^ sum) & (b ^ sum)))
}

/// The difference and its flags.
pub(super) fn sub(size: u32, a: u64, b: u64, borrow: bool) -> (u64, u64) {
    let difference = a.wrapping_sub(b).wrapping_sub(u64::from(borrow)) & mask(size);
    let borrows = !a & b | (!a | b) & difference;
    (difference, with_carries(size, difference, borrows, (a ^ b) & (a ^ difference)))
}

/// All flags of a sum, from the carry out of each bit and the bits whose sign came out wrong.
fn with_carries(size: u32, result: u64, carries: u64, overflows: u64) -> u64 {
    of_result(size, result)
        | when(sign(size, carries), CF)
        | when(carries & 1 << 3 != 0, AF)
        | when(sign(size, overflows), OF)
}
