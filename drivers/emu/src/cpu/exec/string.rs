//! String instructions: one round a call, so that interrupts get in between rounds.

use iced_x86::{OpKind, Register};

use super::flags::{self, DF, STATUS, ZF};
use super::{Done, Exception, Outcome, Step};

/// One round of a string instruction. Its memory accesses come before its changes to registers.
type Round = fn(&mut Step) -> Result<(), Exception>;

/// MOVS, STOS and LODS, which differ in their operands only.
pub(super) fn copy(s: &mut Step) -> Outcome {
    repeated(s, false, |s| {
        let value = s.read(1)?;
        s.write(0, value)
    })
}

/// SCAS and CMPS.
pub(super) fn compare(s: &mut Step) -> Outcome {
    repeated(s, true, |s| {
        let (a, b) = (s.read(0)?, s.read(1)?);
        let size = s.ins.memory_size().size() as u32;
        let (_, flags) = flags::sub(size, a, b, false);
        s.set_flags(STATUS, flags);
        Ok(())
    })
}

/// Does one round, moves the pointers and counts. A comparison ends by ZF too.
fn repeated(s: &mut Step, compares: bool, round: Round) -> Outcome {
    let (repe, repne) = (s.ins.has_rep_prefix(), s.ins.has_repne_prefix());
    let counter = if narrow(s) { Register::ECX } else { Register::RCX };
    let left = s.gpr(counter);
    if (repe || repne) && left == 0 {
        return s.next();
    }
    round(s)?;
    advance(s);
    if !(repe || repne) {
        return s.next();
    }
    s.set_gpr(counter, left - 1);
    let decided = compares && s.flag(ZF) == repne;
    if left == 1 || decided { s.next() } else { Ok(Done::Again) }
}

/// Whether pointers and counter have 32 bits.
fn narrow(s: &Step) -> bool {
    (0..s.ins.op_count()).any(|op| matches!(s.ins.op_kind(op), OpKind::MemorySegESI | OpKind::MemoryESEDI))
}

/// Moves the pointers that the instruction uses by one element, down if DF is set.
fn advance(s: &mut Step) {
    let size = s.ins.memory_size().size() as u64;
    let by = if s.flag(DF) { size.wrapping_neg() } else { size };
    for op in 0..s.ins.op_count() {
        let pointer = match s.ins.op_kind(op) {
            OpKind::MemorySegRSI => Register::RSI,
            OpKind::MemorySegESI => Register::ESI,
            OpKind::MemoryESRDI => Register::RDI,
            OpKind::MemoryESEDI => Register::EDI,
            _ => continue,
        };
        let moved = s.gpr(pointer).wrapping_add(by);
        s.set_gpr(pointer, moved);
    }
}
