//! Which instruction is done where.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::flags::{CF, DF};
use super::{Done, Outcome, Step, arith, atomic, bits, branch, mov, muldiv, shift, sse, stack, string};

/// Whether LOCK is allowed: on read-modify-write instructions with memory as destination (Intel SDM volume 2, LOCK).
pub(super) fn lockable(ins: &Instruction) -> bool {
    use Mnemonic::*;
    let mnemonic = matches!(
        ins.mnemonic(),
        Add | Adc
            | And
            | Btc
            | Btr
            | Bts
            | Cmpxchg
            | Cmpxchg8b
            | Cmpxchg16b
            | Dec
            | Inc
            | Neg
            | Not
            | Or
            | Sbb
            | Sub
            | Xadd
            | Xchg
            | Xor
    );
    mnemonic && ins.op0_kind() == OpKind::Memory
}

/// Runs an instruction on general registers; the others are looked up in the tables that follow.
pub(super) fn run(s: &mut Step) -> Outcome {
    use Mnemonic::*;
    match s.ins.mnemonic() {
        Mov | Movzx | Movnti => mov::mov(s),
        Movsx | Movsxd => mov::sign_extended(s),
        Lea => mov::lea(s),
        Push => stack::push(s),
        Pop => stack::pop(s),
        Add => arith::binary(s, arith::ADD),
        Adc => arith::binary(s, arith::ADC),
        Sub => arith::binary(s, arith::SUB),
        Sbb => arith::binary(s, arith::SBB),
        And => arith::binary(s, arith::AND),
        Or => arith::binary(s, arith::OR),
        Xor => arith::binary(s, arith::XOR),
        Cmp => arith::compare(s, arith::SUB),
        Test => arith::compare(s, arith::AND),
        Inc => arith::count(s, arith::ADD),
        Dec => arith::count(s, arith::SUB),
        Neg => arith::neg(s),
        Not => arith::not(s),
        Shl | Sal => shift::shift(s, shift::SHL),
        Shr => shift::shift(s, shift::SHR),
        Sar => shift::shift(s, shift::SAR),
        Rol => shift::rotate(s, shift::ROL),
        Ror => shift::rotate(s, shift::ROR),
        Rcl => shift::rotate(s, shift::RCL),
        Rcr => shift::rotate(s, shift::RCR),
        Shld => shift::double(s, false),
        Shrd => shift::double(s, true),
        Mul => muldiv::mul(s),
        Imul => muldiv::imul(s),
        Div => muldiv::div(s),
        Idiv => muldiv::idiv(s),
        Xchg => atomic::xchg(s),
        Xadd => atomic::xadd(s),
        Cmpxchg => atomic::cmpxchg(s),
        Cmpxchg8b => atomic::cmpxchg8b(s),
        Cmpxchg16b => atomic::cmpxchg16b(s),
        _ => by_condition(s),
    }
}

/// Branches, and what depends on a condition.
fn by_condition(s: &mut Step) -> Outcome {
    use Mnemonic::*;
    match s.ins.mnemonic() {
        Jo | Jno | Jb | Jae | Je | Jne | Jbe | Ja | Js | Jns | Jp | Jnp | Jl | Jge | Jle | Jg => {
            branch::conditional(s)
        }
        Seto | Setno | Setb | Setae | Sete | Setne | Setbe | Seta | Sets | Setns | Setp | Setnp | Setl
        | Setge | Setle | Setg => mov::set(s),
        Cmovo | Cmovno | Cmovb | Cmovae | Cmove | Cmovne | Cmovbe | Cmova | Cmovs | Cmovns | Cmovp
        | Cmovnp | Cmovl | Cmovge | Cmovle | Cmovg => mov::conditional(s),
        Jmp => branch::jmp(s),
        Call => branch::call(s),
        Ret => branch::ret(s),
        Jrcxz => branch::if_zero(s, Register::RCX),
        Jecxz => branch::if_zero(s, Register::ECX),
        Loop => branch::counted(s, None),
        Loope => branch::counted(s, Some(true)),
        Loopne => branch::counted(s, Some(false)),
        _ => rarer(s),
    }
}

/// Bits, strings, flags, and what does nothing.
fn rarer(s: &mut Step) -> Outcome {
    use Mnemonic::*;
    match s.ins.mnemonic() {
        Bt => bits::test(s),
        Bts => bits::change(s, |word, bit| word | bit),
        Btr => bits::change(s, |word, bit| word & !bit),
        Btc => bits::change(s, |word, bit| word ^ bit),
        Bsf => bits::scan(s, u64::trailing_zeros),
        Bsr => bits::scan(s, u64::ilog2),
        Tzcnt => bits::count_zeros(s, false),
        Lzcnt => bits::count_zeros(s, true),
        Popcnt => bits::population(s),
        Bswap => bits::swap_bytes(s),
        Movsb | Movsw | Movsq | Stosb | Stosw | Stosd | Stosq | Lodsb | Lodsw | Lodsd | Lodsq => {
            string::copy(s)
        }
        Movsd if s.ins.is_string_instruction() => string::copy(s),
        Scasb | Scasw | Scasd | Scasq | Cmpsb | Cmpsw | Cmpsq => string::compare(s),
        Cmpsd if s.ins.is_string_instruction() => string::compare(s),
        Cbw => mov::extend(s, Register::AL, Register::AX),
        Cwde => mov::extend(s, Register::AX, Register::EAX),
        Cdqe => mov::extend(s, Register::EAX, Register::RAX),
        Cwd => mov::spread_sign(s, Register::AX, Register::DX),
        Cdq => mov::spread_sign(s, Register::EAX, Register::EDX),
        Cqo => mov::spread_sign(s, Register::RAX, Register::RDX),
        Lahf => mov::lahf(s),
        Sahf => mov::sahf(s),
        Xlatb => mov::xlat(s),
        Clc => mov::set_flag(s, CF, false),
        Stc => mov::set_flag(s, CF, true),
        Cmc => mov::set_flag(s, CF, !s.flag(CF)),
        Cld => mov::set_flag(s, DF, false),
        Std => mov::set_flag(s, DF, true),
        Pushf | Pushfq => stack::pushf(s),
        Popf | Popfq => stack::popf(s),
        Leave => stack::leave(s),
        Nop | Reservednop | Endbr32 | Endbr64 | Pause | Lfence | Mfence | Sfence | Prefetch | Prefetchw
        | Prefetchwt1 | Prefetchnta | Prefetcht0 | Prefetcht1 | Prefetcht2 => s.next(),
        _ => match sse::find(s.ins) {
            Some(run) => sse::guarded(s, run),
            None => Ok(Done::NotHere),
        },
    }
}
