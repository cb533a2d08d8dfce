//! What the instructions of a program do: data movement, arithmetic, logic, stack, branches, strings, SSE moves.

mod arith;
mod atomic;
mod bits;
mod branch;
mod flags;
mod mov;
mod muldiv;
pub(super) mod operand;
mod shift;
mod sse;
mod stack;
mod string;
mod table;

use iced_x86::{Instruction, OpKind, Register};

use super::{Bus, Cpu, Exception};

/// What became of an instruction that raised no exception.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Done {
    /// It completed; RIP is set to the next one to execute.
    Next,
    /// A repeated string instruction did one round and has more; RIP still points at it.
    Again,
    /// Not one of these: a system instruction, or none that the machine knows. Nothing was changed.
    NotHere,
}

/// What every instruction here ends with.
type Outcome = Result<Done, Exception>;

/// One instruction at work.
struct Step<'a> {
    cpu: &'a mut Cpu,
    bus: &'a mut dyn Bus,
    ins: &'a Instruction,
}

/// Executes `instruction`, which was decoded at `cpu.regs.rip` in 64-bit code.
///
/// # Errors
/// The exception it raises. RIP, registers, flags and memory are then as before it, but for the rounds that a
/// repeated string instruction has already done.
pub fn execute(cpu: &mut Cpu, bus: &mut dyn Bus, instruction: &Instruction) -> Result<Done, Exception> {
    if instruction.has_lock_prefix() && !table::lockable(instruction) {
        return Err(Exception::INVALID_OPCODE);
    }
    if !known_operands(instruction) {
        return Ok(Done::NotHere);
    }
    table::run(&mut Step { cpu, bus, ins: instruction })
}

/// Whether every register operand is a general or an XMM one. MMX, segment, control and debug registers are not
/// handled here, so the operand accessors need not tell them apart.
fn known_operands(ins: &Instruction) -> bool {
    (0..ins.op_count()).all(|op| match ins.op_kind(op) {
        OpKind::Register => {
            let register = ins.op_register(op);
            operand::place(register).is_some() || (Register::XMM0..=Register::XMM15).contains(&register)
        }
        _ => true,
    })
}

impl Step<'_> {
    /// Ends an instruction that goes on to the next one.
    fn next(&mut self) -> Outcome {
        self.cpu.regs.rip = self.ins.next_ip();
        Ok(Done::Next)
    }

    /// Replaces the flags of `mask` by those of `value`.
    fn set_flags(&mut self, mask: u64, value: u64) {
        let flags = &mut self.cpu.regs.rflags;
        *flags = *flags & !mask | value & mask;
    }

    /// Whether a flag is set.
    fn flag(&self, flag: u64) -> bool {
        self.cpu.regs.rflags & flag != 0
    }
}
