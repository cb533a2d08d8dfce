//! Injection into a vCPU.

use std::sync::Arc;

use vmtree_api::events::{Inject, Injection};
use vmtree_api::{Error, ErrorKind, Result, VcpuId};

use crate::cpu::grants::Trap;
use crate::machine::Machine;

/// What it is called in errors.
pub const OP: &str = "inject";

/// Injection into the vCPUs of a machine.
pub struct Injector(pub Arc<Machine>);

/// Leaves something for a vCPU to take.
///
/// # Errors
/// [`ErrorKind::Busy`].
pub fn leave(trap: &mut Trap, what: Inject) -> Result<()> {
    if trap.injected.is_some() {
        return Err(Error::new(
            ErrorKind::Busy,
            OP,
            "another injection waits; the vCPU has not taken it yet",
        ));
    }
    trap.injected = Some(what);
    trap.attention = true;
    Ok(())
}

impl Injection for Injector {
    fn inject(&self, vcpu: VcpuId, what: Inject) -> Result<()> {
        let mut visit = self.0.visit(OP)?;
        let index = visit.index(OP, vcpu)?;
        what.check(OP)?;
        leave(&mut visit.vcpus[index].trap, what)?;
        visit.changed();
        Ok(())
    }
}
