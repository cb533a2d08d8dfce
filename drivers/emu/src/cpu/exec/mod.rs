//! What the instructions of a program do: data movement, arithmetic, logic, stack, branches, strings, SSE moves.

use iced_x86::Instruction;

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

/// Executes `instruction`, which was decoded at `cpu.regs.rip` in 64-bit code.
///
/// # Errors
/// The exception it raises. RIP, registers, flags and memory are then as before it, but for the rounds that a
/// repeated string instruction has already done.
pub fn execute(cpu: &mut Cpu, bus: &mut dyn Bus, instruction: &Instruction) -> Result<Done, Exception> {
    let _ = (cpu, bus, instruction);
    Ok(Done::NotHere)
}
