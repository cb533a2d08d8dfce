//! SSE and SSE2 as compilers emit them for moving, comparing and shuffling data. There is no floating point.

mod lanes;
mod moves;
mod operand;
mod shuffle;

use iced_x86::{Instruction, Mnemonic};

use super::{Exception, Outcome, Step};
use lanes::{binary, shift};

const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR4_OSFXSR: u64 = 1 << 9;
/// #NM, device not available.
const NOT_AVAILABLE: Exception = Exception::plain(7);

/// What runs an instruction.
type Run = fn(&mut Step) -> Outcome;

/// Runs an SSE instruction if the control registers allow it (Intel SDM volume 3A, 13.1).
pub(super) fn guarded(s: &mut Step, run: Run) -> Outcome {
    if s.cpu.regs.cr0 & CR0_EM != 0 || s.cpu.regs.cr4 & CR4_OSFXSR == 0 {
        return Err(Exception::INVALID_OPCODE);
    }
    if s.cpu.regs.cr0 & CR0_TS != 0 {
        return Err(NOT_AVAILABLE);
    }
    run(s)
}

/// The instruction's place, if it is one of these.
pub(super) fn find(ins: &Instruction) -> Option<Run> {
    use Mnemonic::*;
    let run: Run = match ins.mnemonic() {
        Movaps | Movapd | Movdqa | Movntps | Movntpd | Movntdq => moves::aligned,
        Movups | Movupd | Movdqu | Lddqu => moves::unaligned,
        Movd | Movq => moves::low_part,
        Movss => moves::scalar,
        Movsd => moves::scalar,
        Movhps | Movhpd | Movlhps => moves::to_or_from_high,
        Movlps | Movlpd | Movhlps => moves::to_or_from_low,
        Pmovmskb => |s| moves::signs(s, 8),
        Movmskps => |s| moves::signs(s, 32),
        Movmskpd => |s| moves::signs(s, 64),
        Ldmxcsr => moves::load_control,
        Stmxcsr => moves::store_control,
        _ => return find_shuffle(ins).or_else(|| find_lanes(ins)).or_else(|| find_shift(ins)),
    };
    Some(run)
}

fn find_shuffle(ins: &Instruction) -> Option<Run> {
    use Mnemonic::*;
    let run: Run = match ins.mnemonic() {
        Punpcklbw => |s| shuffle::unpack(s, 8, false),
        Punpcklwd => |s| shuffle::unpack(s, 16, false),
        Punpckldq | Unpcklps => |s| shuffle::unpack(s, 32, false),
        Punpcklqdq | Unpcklpd => |s| shuffle::unpack(s, 64, false),
        Punpckhbw => |s| shuffle::unpack(s, 8, true),
        Punpckhwd => |s| shuffle::unpack(s, 16, true),
        Punpckhdq | Unpckhps => |s| shuffle::unpack(s, 32, true),
        Punpckhqdq | Unpckhpd => |s| shuffle::unpack(s, 64, true),
        Pshufd => shuffle::doublewords,
        Pshuflw => |s| shuffle::words(s, 0),
        Pshufhw => |s| shuffle::words(s, 64),
        Shufps => shuffle::of_two,
        Pslldq => |s| shuffle::bytes(s, |value, bits| value << bits),
        Psrldq => |s| shuffle::bytes(s, |value, bits| value >> bits),
        _ => return None,
    };
    Some(run)
}

fn find_lanes(ins: &Instruction) -> Option<Run> {
    use Mnemonic::*;
    let run: Run = match ins.mnemonic() {
        Pxor | Xorps | Xorpd => |s| binary(s, 64, |a, b| a ^ b),
        Por | Orps | Orpd => |s| binary(s, 64, |a, b| a | b),
        Pand | Andps | Andpd => |s| binary(s, 64, |a, b| a & b),
        Pandn | Andnps | Andnpd => |s| binary(s, 64, |a, b| !a & b),
        Pcmpeqb => |s| binary(s, 8, lanes::equal),
        Pcmpeqw => |s| binary(s, 16, lanes::equal),
        Pcmpeqd => |s| binary(s, 32, lanes::equal),
        Pcmpgtb => |s| binary(s, 8, |a, b| lanes::all_if(a as i8 > b as i8)),
        Pcmpgtw => |s| binary(s, 16, |a, b| lanes::all_if(a as i16 > b as i16)),
        Pcmpgtd => |s| binary(s, 32, |a, b| lanes::all_if(a as i32 > b as i32)),
        Paddb => |s| binary(s, 8, u64::wrapping_add),
        Paddw => |s| binary(s, 16, u64::wrapping_add),
        Paddd => |s| binary(s, 32, u64::wrapping_add),
        Paddq => |s| binary(s, 64, u64::wrapping_add),
        Psubb => |s| binary(s, 8, u64::wrapping_sub),
        Psubw => |s| binary(s, 16, u64::wrapping_sub),
        Psubd => |s| binary(s, 32, u64::wrapping_sub),
        Psubq => |s| binary(s, 64, u64::wrapping_sub),
        Pminub => |s| binary(s, 8, u64::min),
        Pmaxub => |s| binary(s, 8, u64::max),
        Pminsw => |s| binary(s, 16, |a, b| (a as i16).min(b as i16) as u64),
        Pmaxsw => |s| binary(s, 16, |a, b| (a as i16).max(b as i16) as u64),
        Pmullw => |s| binary(s, 16, u64::wrapping_mul),
        Pmuludq => |s| binary(s, 64, |a, b| (a & 0xffff_ffff) * (b & 0xffff_ffff)),
        _ => return None,
    };
    Some(run)
}

fn find_shift(ins: &Instruction) -> Option<Run> {
    use Mnemonic::*;
    let run: Run = match ins.mnemonic() {
        Psllw => |s| shift(s, 16, lanes::LEFT),
        Pslld => |s| shift(s, 32, lanes::LEFT),
        Psllq => |s| shift(s, 64, lanes::LEFT),
        Psrlw => |s| shift(s, 16, lanes::RIGHT),
        Psrld => |s| shift(s, 32, lanes::RIGHT),
        Psrlq => |s| shift(s, 64, lanes::RIGHT),
        Psraw => |s| shift(s, 16, lanes::ARITHMETIC),
        Psrad => |s| shift(s, 32, lanes::ARITHMETIC),
        _ => return None,
    };
    Some(run)
}
