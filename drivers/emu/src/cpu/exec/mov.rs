//! Data movement between general registers and memory, and the flag operations.

use iced_x86::{ConditionCode, Register};

use super::flags::{CF, OF, PF, SF, STATUS, ZF};
use super::operand::sign_extend;
use super::{Outcome, Step};

/// MOV, MOVZX and MOVNTI: a source smaller than the destination is zero-extended.
pub(super) fn mov(s: &mut Step) -> Outcome {
    let value = s.read(1)?;
    s.write(0, value)?;
    s.next()
}

/// MOVSX and MOVSXD.
pub(super) fn sign_extended(s: &mut Step) -> Outcome {
    let value = sign_extend(s.read(1)?, s.size(1));
    s.write(0, value as u64)?;
    s.next()
}

/// LEA: the offset, without a segment base.
pub(super) fn lea(s: &mut Step) -> Outcome {
    let (offset, _) = s.offset();
    s.write(0, offset)?;
    s.next()
}

/// CMOVcc: the source is read, and a 32-bit destination cleared above, whether the condition holds or not.
pub(super) fn conditional(s: &mut Step) -> Outcome {
    let value = s.read(1)?;
    let value = if condition(s) { value } else { s.read(0)? };
    s.write(0, value)?;
    s.next()
}

/// SETcc.
pub(super) fn set(s: &mut Step) -> Outcome {
    let value = u64::from(condition(s));
    s.write(0, value)?;
    s.next()
}

/// Whether the condition in the instruction's name holds (Intel SDM volume 1, appendix B).
pub(super) fn condition(s: &Step) -> bool {
    let less = s.flag(SF) != s.flag(OF);
    match s.ins.condition_code() {
        ConditionCode::None => true,
        ConditionCode::o => s.flag(OF),
        ConditionCode::no => !s.flag(OF),
        ConditionCode::b => s.flag(CF),
        ConditionCode::ae => !s.flag(CF),
        ConditionCode::e => s.flag(ZF),
        ConditionCode::ne => !s.flag(ZF),
        ConditionCode::be => s.flag(CF | ZF),
        ConditionCode::a => !s.flag(CF | ZF),
        ConditionCode::s => s.flag(SF),
        ConditionCode::ns => !s.flag(SF),
        ConditionCode::p => s.flag(PF),
        ConditionCode::np => !s.flag(PF),
        ConditionCode::l => less,
        ConditionCode::ge => !less,
        ConditionCode::le => less || s.flag(ZF),
        ConditionCode::g => !less && !s.flag(ZF),
    }
}

/// CBW, CWDE and CDQE: the accumulator's lower half, sign-extended into the whole.
pub(super) fn extend(s: &mut Step, from: Register, to: Register) -> Outcome {
    let value = sign_extend(s.gpr(from), from.size() as u32);
    s.set_gpr(to, value as u64);
    s.next()
}

/// CWD, CDQ and CQO: the accumulator's sign, spread over the data register.
pub(super) fn spread_sign(s: &mut Step, from: Register, to: Register) -> Outcome {
    let value = sign_extend(s.gpr(from), from.size() as u32) >> 63;
    s.set_gpr(to, value as u64);
    s.next()
}

/// LAHF: bit 1 is always set, as in RFLAGS.
pub(super) fn lahf(s: &mut Step) -> Outcome {
    let flags = s.cpu.regs.rflags & STATUS & !OF | 2;
    s.set_gpr(Register::AH, flags);
    s.next()
}

/// SAHF.
pub(super) fn sahf(s: &mut Step) -> Outcome {
    let flags = s.gpr(Register::AH);
    s.set_flags(STATUS & !OF, flags);
    s.next()
}

/// XLATB: AL becomes the byte that it indexes.
pub(super) fn xlat(s: &mut Step) -> Outcome {
    let value = s.read(0)?;
    s.set_gpr(Register::AL, value);
    s.next()
}

/// CLC, STC, CMC, CLD, STD.
pub(super) fn set_flag(s: &mut Step, flag: u64, value: bool) -> Outcome {
    s.set_flags(flag, if value { flag } else { 0 });
    s.next()
}
