//! Multiplication and division. The flags that the manual leaves undefined stay as they were.

use iced_x86::Register;

use super::flags::{CF, OF, when};
use super::operand::{mask, sign_extend};
use super::{Exception, Outcome, Step};

/// The parts of the accumulator for an operand size: the low half, and the high one, which is AH for bytes.
fn accumulator(size: u32) -> (Register, Register) {
    match size {
        1 => (Register::AL, Register::AH),
        2 => (Register::AX, Register::DX),
        4 => (Register::EAX, Register::EDX),
        _ => (Register::RAX, Register::RDX),
    }
}

fn set_accumulator(s: &mut Step, size: u32, low: u64, high: u64) {
    let (low_part, high_part) = accumulator(size);
    s.set_gpr(low_part, low);
    s.set_gpr(high_part, high);
}

/// MUL.
pub(super) fn mul(s: &mut Step) -> Outcome {
    let size = s.size(0);
    let product = u128::from(s.read(0)?) * u128::from(s.gpr(accumulator(size).0));
    let high = (product >> (size * 8)) as u64;
    set_accumulator(s, size, product as u64, high);
    s.set_flags(CF | OF, when(high != 0, CF | OF));
    s.next()
}

/// IMUL with one, two or three operands.
pub(super) fn imul(s: &mut Step) -> Outcome {
    let size = s.size(0);
    let (a, b) = match s.ins.op_count() {
        1 => (s.read(0)?, s.gpr(accumulator(size).0)),
        2 => (s.read(0)?, s.read(1)?),
        _ => (s.read(1)?, s.read(2)?),
    };
    let product = i128::from(sign_extend(a, size)) * i128::from(sign_extend(b, size));
    if s.ins.op_count() == 1 {
        set_accumulator(s, size, product as u64, (product >> (size * 8)) as u64);
    } else {
        s.write(0, product as u64)?;
    }
    let lost = product != i128::from(sign_extend(product as u64, size));
    s.set_flags(CF | OF, when(lost, CF | OF));
    s.next()
}

/// The dividend: twice as wide as the divisor.
fn dividend(s: &Step, size: u32) -> u128 {
    let (low, high) = accumulator(size);
    u128::from(s.gpr(high)) << (size * 8) | u128::from(s.gpr(low))
}

/// DIV.
pub(super) fn div(s: &mut Step) -> Outcome {
    let size = s.size(0);
    let divisor = u128::from(s.read(0)?);
    let dividend = dividend(s, size);
    let quotient = dividend.checked_div(divisor).filter(|quotient| *quotient <= u128::from(mask(size)));
    let quotient = quotient.ok_or(Exception::DIVIDE)?;
    set_accumulator(s, size, quotient as u64, (dividend % divisor) as u64);
    s.next()
}

/// IDIV: the quotient is rounded towards 0, the remainder has the dividend's sign.
pub(super) fn idiv(s: &mut Step) -> Outcome {
    let size = s.size(0);
    let divisor = i128::from(sign_extend(s.read(0)?, size));
    let unused = 128 - size * 16;
    let dividend = (dividend(s, size) << unused) as i128 >> unused;
    let quotient = dividend.checked_div(divisor).ok_or(Exception::DIVIDE)?;
    if quotient != i128::from(sign_extend(quotient as u64, size)) {
        return Err(Exception::DIVIDE);
    }
    set_accumulator(s, size, quotient as u64, (dividend % divisor) as u64);
    s.next()
}
