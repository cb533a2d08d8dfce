//! Exchanges. With or without LOCK they are one step: vCPUs take turns between instructions.

use iced_x86::Register;

use super::flags::{self, STATUS, ZF, when};
use super::{Exception, Outcome, Step};

/// XCHG. Of two operands, iced shows the one in memory first.
pub(super) fn xchg(s: &mut Step) -> Outcome {
    let a = s.read_for_write(0)?;
    let b = s.read(1)?;
    s.write(0, b)?;
    s.write(1, a)?;
    s.next()
}

/// XADD: of one register with itself, the sum stays.
pub(super) fn xadd(s: &mut Step) -> Outcome {
    let old = s.read_for_write(0)?;
    let addend = s.read(1)?;
    let (sum, flags) = flags::add(s.size(0), old, addend, false);
    if s.in_memory(0) {
        s.write(0, sum)?;
        s.write(1, old)?;
    } else {
        s.write(1, old)?;
        s.write(0, sum)?;
    }
    s.set_flags(STATUS, flags);
    s.next()
}

/// CMPXCHG: if unequal, memory is written all the same, but a register is not touched: not even its upper half.
pub(super) fn cmpxchg(s: &mut Step) -> Outcome {
    let size = s.size(0);
    let accumulator = match size {
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    };
    let old = s.read_for_write(0)?;
    let (_, flags) = flags::sub(size, s.gpr(accumulator), old, false);
    let equal = flags & ZF != 0;
    let new = if equal { s.read(1)? } else { old };
    if equal || s.in_memory(0) {
        s.write(0, new)?;
    }
    if !equal {
        s.set_gpr(accumulator, old);
    }
    s.set_flags(STATUS, flags);
    s.next()
}

/// CMPXCHG8B.
pub(super) fn cmpxchg8b(s: &mut Step) -> Outcome {
    let pair = |s: &Step, high, low| s.gpr(high) << 32 | s.gpr(low);
    let old = s.read_for_write(0)?;
    let equal = pair(s, Register::EDX, Register::EAX) == old;
    let new = if equal { pair(s, Register::ECX, Register::EBX) } else { old };
    s.write(0, new)?;
    if !equal {
        s.set_gpr(Register::EAX, old);
        s.set_gpr(Register::EDX, old >> 32);
    }
    s.set_flags(ZF, when(equal, ZF));
    s.next()
}

/// CMPXCHG16B, whose operand must be aligned.
pub(super) fn cmpxchg16b(s: &mut Step) -> Outcome {
    let address = s.address(0, 0);
    if !address.is_multiple_of(16) {
        return Err(Exception::protection(0));
    }
    let pair = |s: &Step, high, low| u128::from(s.gpr(high)) << 64 | u128::from(s.gpr(low));
    let mut bytes = [0; 16];
    s.load_bytes_for_write(address, &mut bytes)?;
    let old = u128::from_le_bytes(bytes);
    let equal = pair(s, Register::RDX, Register::RAX) == old;
    let new = if equal { pair(s, Register::RCX, Register::RBX) } else { old };
    s.store_bytes(address, &new.to_le_bytes())?;
    if !equal {
        s.set_gpr(Register::RAX, old as u64);
        s.set_gpr(Register::RDX, (old >> 64) as u64);
    }
    s.set_flags(ZF, when(equal, ZF));
    s.next()
}
