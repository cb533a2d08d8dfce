//! Moves between XMM registers, general registers and memory.

use iced_x86::Mnemonic;

use super::super::operand::mask;
use super::super::{Exception, Outcome, Step};

/// MOVAPS and its like: memory is aligned to 16 bytes.
pub(super) fn aligned(s: &mut Step) -> Outcome {
    whole(s, true)
}

/// MOVUPS and its like.
pub(super) fn unaligned(s: &mut Step) -> Outcome {
    whole(s, false)
}

fn whole(s: &mut Step, aligned: bool) -> Outcome {
    let value = s.read_vector(1, aligned)?;
    s.write_vector(0, value, aligned)?;
    s.next()
}

/// MOVD and MOVQ: the rest of an XMM destination is cleared.
pub(super) fn low_part(s: &mut Step) -> Outcome {
    let other = if s.is_xmm(0) { 1 } else { 0 };
    let size = if s.is_xmm(other) { 8 } else { s.size(other) };
    let value = s.read_low(1, size)?;
    if s.is_xmm(0) {
        s.set_vector(0, u128::from(value));
    } else {
        s.write(0, value)?;
    }
    s.next()
}

/// MOVSS and MOVSD: a load clears the rest of the register, a move between registers leaves it.
pub(super) fn scalar(s: &mut Step) -> Outcome {
    let size = if s.ins.mnemonic() == Mnemonic::Movss { 4 } else { 8 };
    let value = s.read_low(1, size)?;
    if !s.is_xmm(0) {
        s.write(0, value)?;
    } else {
        let kept = if s.is_xmm(1) { s.vector(0) & !u128::from(mask(size)) } else { 0 };
        s.set_vector(0, kept | u128::from(value));
    }
    s.next()
}

/// MOVHPS, MOVHPD and MOVLHPS: the high half of a register, from or to memory or another's low half.
pub(super) fn to_or_from_high(s: &mut Step) -> Outcome {
    if s.is_xmm(0) {
        let high = s.read_low(1, 8)?;
        s.set_vector(0, u128::from(high) << 64 | u128::from(s.vector(0) as u64));
    } else {
        s.write(0, (s.vector(1) >> 64) as u64)?;
    }
    s.next()
}

/// MOVLPS, MOVLPD and MOVHLPS: the low half of a register, from or to memory, or from another's high half.
pub(super) fn to_or_from_low(s: &mut Step) -> Outcome {
    if s.is_xmm(0) {
        let low = if s.is_xmm(1) { (s.vector(1) >> 64) as u64 } else { s.read(1)? };
        s.set_vector(0, s.vector(0) >> 64 << 64 | u128::from(low));
    } else {
        s.write(0, s.vector(1) as u64)?;
    }
    s.next()
}

/// PMOVMSKB, MOVMSKPS and MOVMSKPD: the highest bits of all lanes.
pub(super) fn signs(s: &mut Step, bits: u32) -> Outcome {
    let value = s.vector(1);
    let lanes = 128 / bits;
    let signs = (0..lanes).fold(0, |all, lane| all | (value >> ((lane + 1) * bits - 1) as u64 & 1) << lane);
    s.write(0, signs as u64)?;
    s.next()
}

/// LDMXCSR: bits 31:16 are reserved.
pub(super) fn load_control(s: &mut Step) -> Outcome {
    let value = s.read(0)?;
    if value >> 16 != 0 {
        return Err(Exception::protection(0));
    }
    s.cpu.mxcsr = value as u32;
    s.next()
}

/// STMXCSR.
pub(super) fn store_control(s: &mut Step) -> Outcome {
    let value = u64::from(s.cpu.mxcsr);
    s.write(0, value)?;
    s.next()
}
