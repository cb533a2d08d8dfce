//! Registers of held vCPUs, as the agent has them: numbers alone. Of segments it has the selectors, and it leaves out rflags.

use vmtree_agent::Reg;
use vmtree_api::{Arch, RegId, RegValue, RegisterSet, Result};

use super::words;

/// Whether the agent has it of a held vCPU.
#[must_use]
pub fn is_had(id: RegId) -> bool {
    Reg::ALL.iter().any(|reg| *reg != Reg::Rflags && words::id(*reg) == Some(id))
}

/// What the agent told, as a set.
///
/// # Errors
/// [`vmtree_api::ErrorKind::OutOfRange`] for what is no register's value.
pub fn set(values: &[(Reg, u64)]) -> Result<RegisterSet> {
    let mut set = RegisterSet::new(Arch::X86_64);
    for (reg, value) in values {
        if let Some(id) = words::id(*reg) {
            set.set(id, RegValue::Word(*value))?;
        }
    }
    Ok(set)
}

/// What the agent is told to set.
///
/// # Errors
/// [`vmtree_api::ErrorKind::Unsupported`] for a register that it doesn't know.
pub fn words(changes: &[(RegId, RegValue)]) -> Result<Vec<(Reg, u64)>> {
    changes.iter().map(words::register).collect()
}
