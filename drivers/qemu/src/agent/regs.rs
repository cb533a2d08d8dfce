//! Registers as the agent calls them.

use vmtree_agent::Reg as Wire;
use vmtree_api::x86::{Reg, Registers};
use vmtree_api::{Error, ErrorKind, RegId, RegValue, RegisterSet, Result};

/// The registers that are numbers on both sides. The agent's flags lack the arithmetic ones, so they are not here; of
/// segments it has the selectors alone.
const WORDS: &[(Wire, Reg)] = &[
    (Wire::Rax, Reg::Rax),
    (Wire::Rcx, Reg::Rcx),
    (Wire::Rdx, Reg::Rdx),
    (Wire::Rbx, Reg::Rbx),
    (Wire::Rsp, Reg::Rsp),
    (Wire::Rbp, Reg::Rbp),
    (Wire::Rsi, Reg::Rsi),
    (Wire::Rdi, Reg::Rdi),
    (Wire::R8, Reg::R8),
    (Wire::R9, Reg::R9),
    (Wire::R10, Reg::R10),
    (Wire::R11, Reg::R11),
    (Wire::R12, Reg::R12),
    (Wire::R13, Reg::R13),
    (Wire::R14, Reg::R14),
    (Wire::R15, Reg::R15),
    (Wire::Rip, Reg::Rip),
    (Wire::Cr0, Reg::Cr0),
    (Wire::Cr2, Reg::Cr2),
    (Wire::Cr3, Reg::Cr3),
    (Wire::Cr4, Reg::Cr4),
    (Wire::Cr8, Reg::Cr8),
    (Wire::Efer, Reg::Efer),
    (Wire::KernelGsBase, Reg::KernelGsBase),
];

/// Whether a held vCPU's agent has it.
#[must_use]
pub fn is_had(id: RegId) -> bool {
    WORDS.iter().any(|(_, reg)| reg.id() == id)
}

/// What the agent told, as a set.
pub fn set(values: &[(Wire, u64)]) -> RegisterSet {
    let mut registers = Registers::default();
    lay_over(&mut registers, values);
    RegisterSet::X86_64(Box::new(registers))
}

fn lay_over(registers: &mut Registers, values: &[(Wire, u64)]) {
    for (wire, value) in values {
        if let Some((_, reg)) = WORDS.iter().find(|(is, _)| is == wire) {
            registers.set(*reg, RegValue::Word(*value));
        }
    }
}

/// What the agent is told to set.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a register that it can't.
pub fn words(changes: &[(RegId, RegValue)]) -> Result<Vec<(Wire, u64)>> {
    let word = |(id, value): &(RegId, RegValue)| match (WORDS.iter().find(|(_, reg)| reg.id() == *id), value) {
        (Some((wire, _)), RegValue::Word(word)) => Ok((*wire, *word)),
        _ => {
            let name = Reg::from_id(*id).map_or("it".to_owned(), |reg| format!("{reg:?}").to_lowercase());
            let why = format!("{name} of a vCPU that waits at an event can't be set in QEMU");
            Err(Error::new(ErrorKind::Unsupported, "set registers", why))
        }
    };
    changes.iter().map(word).collect()
}
