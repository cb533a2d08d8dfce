//! Injection into a vCPU.

use std::sync::Arc;

use vmtree_api::events::{Inject, Injection};
use vmtree_api::{Error, ErrorKind, Result, VcpuId};

use crate::cpu::grants::Trap;
use crate::machine::Machine;

const OP: &str = "inject";

/// The exceptions that push an error code (Intel SDM volume 3A, table 6-1).
const WITH_ERROR: &[u8] = &[8, 10, 11, 12, 13, 14, 17, 21];
const NMI: u8 = 2;
const PAGE_FAULT: u8 = 14;

/// Injection into the vCPUs of a machine.
pub struct Injector(pub Arc<Machine>);

/// Whether this can be injected at all: what a VM entry checks (volume 3C, 27.2.1.3).
///
/// # Errors
/// [`ErrorKind::Invalid`].
pub fn check(what: Inject) -> Result<()> {
    let refuse = |why: String| Err(Error::new(ErrorKind::Invalid, OP, why));
    let (vector, error) = match what {
        Inject::PageFault { error, .. } => (PAGE_FAULT, Some(error)),
        Inject::Exception { vector, error } => (vector, error),
        Inject::Interrupt { .. } | Inject::Nmi => return Ok(()),
    };
    if vector > 31 {
        return refuse(format!("{vector} is no exception: they are 0 to 31; inject it as an interrupt"));
    }
    if vector == NMI {
        return refuse("vector 2 is no exception; inject nmi".to_owned());
    }
    match (WITH_ERROR.contains(&vector), error) {
        (true, None) => refuse(format!("exception {vector} has an error code; give err=CODE")),
        (false, Some(_)) => refuse(format!("exception {vector} has no error code")),
        (true, Some(error)) if error >> 16 != 0 => {
            refuse(format!("the error code {error:#x} has more than 16 bits"))
        }
        _ => Ok(()),
    }
}

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
        check(what)?;
        leave(&mut visit.vcpus[index].trap, what)?;
        visit.changed();
        Ok(())
    }
}
