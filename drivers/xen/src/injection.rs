//! Injection: exceptions by a vCPU's next entry, interrupts by its local APIC.

use std::sync::Arc;

use vmtree_api::events::{Inject, Injection};
use vmtree_api::{Error, ErrorKind, Result, VcpuId};

use crate::error::{is, number, refused};
use crate::hypervisor::{Hypervisor, Ran, Trap};
use crate::owner::Owner;
use crate::registers::records::{Records, half, kind, word};
use crate::world::World;

const OP: &str = "inject";

/// The type of exceptions (X86_ET_HW_EXC).
const HARDWARE: u8 = 3;
/// Where messages of interrupts go; the local APIC's id is in bits 12 to 19.
const MESSAGES: u64 = 0xfee0_0000;
/// Registers of the local APIC.
const ID: usize = 0x20;
const SPURIOUS: usize = 0xf0;
const TIMER: usize = 0x320;
/// The bit of IA32_APIC_BASE of x2APIC mode, in which the id is not shifted.
const X2APIC: u64 = 1 << 10;
/// The local APIC is on.
const ENABLED: u32 = 1 << 8;
/// A local interrupt is masked.
const MASKED: u32 = 1 << 16;

/// Injection into the vCPUs of a domain.
pub struct Injector(pub Arc<Owner>);

/// Whether this can be injected at all.
///
/// # Errors
/// [`ErrorKind::Invalid`].
pub fn check(what: Inject) -> Result<()> {
    match what {
        Inject::Interrupt { vector } if vector < 16 => {
            let why = format!("a local APIC takes no interrupt of vector {vector}: they are 16 to 255");
            Err(Error::new(ErrorKind::Invalid, OP, why))
        }
        what => what.check(OP),
    }
}

impl World {
    /// Makes something happen to a vCPU; it was checked.
    ///
    /// # Errors
    /// As [`Injection::inject`].
    pub fn inject_into(&mut self, op: &'static str, vcpu: u32, what: Inject) -> Result<()> {
        let done = match what {
            Inject::PageFault { address, error } => {
                self.xen.inject(vcpu, trap(Inject::PAGE_FAULT, Some(error), address.0))
            }
            Inject::Exception { vector, error } => self.xen.inject(vcpu, trap(vector, error, 0)),
            Inject::Interrupt { vector } => return self.interrupt(op, vcpu, vector),
            Inject::Nmi => self.xen.nmi(vcpu),
        };
        done.map_err(|error| match error {
            error if is(&error, number::EBUSY) => {
                Error::new(ErrorKind::Busy, op, "another injection waits; the vCPU has not taken it yet")
            }
            error => self.refused(op, "Xen does not inject it", error),
        })
    }

    /// Through the local APIC, so that it waits until the guest takes interrupts.
    fn interrupt(&mut self, op: &'static str, vcpu: u32, vector: u8) -> Result<()> {
        let Some(to) = messages(&self.records(op)?, vcpu) else {
            let why =
                format!("the guest has the local APIC of vCPU {vcpu} off, so no interrupt can reach it");
            return Err(Error::new(ErrorKind::Unsupported, op, why));
        };
        self.xen
            .message(to, u32::from(vector))
            .map_err(|error| self.refused(op, "Xen does not send the interrupt", error))
    }

    /// As [`wake_halted`]; that it can't be done is only told. Whether it was halted.
    pub fn wake_halted(&self, vcpu: u32) -> bool {
        wake_halted(&*self.xen, vcpu).unwrap_or_else(|error| {
            log::warn!("vCPU {vcpu} may have lost its timer: {error}");
            false
        })
    }
}

/// Where messages to a vCPU's local APIC go; `None` where the guest has it off.
fn messages(records: &Records, vcpu: u32) -> Option<u64> {
    let apic = records.get(kind::LAPIC_REGS, vcpu)?;
    let base = records.get(kind::LAPIC, vcpu).map_or(0, |lapic| word(lapic, 0));
    let id = half(apic, ID);
    let id = u64::from(if base & X2APIC == 0 { id >> 24 } else { id & 0xff });
    (half(apic, SPURIOUS) & ENABLED != 0).then_some(MESSAGES | id << 12)
}

/// Wakes a vCPU that has halted while it was stepped, by the interrupt of its own timer. Xen keeps the ticks of a stepped
/// vCPU back, and starts the timer anew only once a tick is taken, so that it would be halted for good. Who waits for
/// something else gets one tick early. Whether it was halted.
///
/// # Errors
/// As Xen says.
pub fn wake_halted(xen: &dyn Hypervisor, vcpu: u32) -> Result<bool> {
    const OP: &str = "wake a vCPU";
    let failed = |error| refused(OP, "Xen does not send its timer's interrupt", error);
    if xen.ran(vcpu).map_err(failed)? != Ran::Halted {
        return Ok(false);
    }
    let records = Records::parse(xen.load().map_err(failed)?)?;
    let timer = half(records.get(kind::LAPIC_REGS, vcpu).unwrap_or_default(), TIMER);
    let vector = timer & 0xff;
    match messages(&records, vcpu) {
        Some(to) if timer & MASKED == 0 && vector >= 16 => xen.message(to, vector).map_err(failed)?,
        _ => {}
    }
    Ok(true)
}

fn trap(vector: u8, error: Option<u32>, cr2: u64) -> Trap {
    // As hardware raises it, at the instruction: RIP stays there, for int3 and into as well.
    Trap { vector, kind: HARDWARE, error, length: 0, cr2 }
}

impl Injection for Injector {
    fn inject(&self, vcpu: VcpuId, what: Inject) -> Result<()> {
        check(what)?;
        self.0.ask(OP, move |world| {
            let vcpu = world.vcpu(OP, vcpu)?;
            world.inject_into(OP, vcpu, what)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmtree_api::Gva;

    #[test]
    fn what_a_vm_entry_refuses_is_refused() {
        let exception = |vector, error| check(Inject::Exception { vector, error });
        for (vector, error) in [(6, None), (13, Some(0)), (14, Some(0xffff)), (3, None)] {
            assert!(exception(vector, error).is_ok(), "{vector}");
        }
        for (vector, error) in [(6, Some(0)), (13, None), (2, None), (32, None), (14, Some(0x1_0000))] {
            assert_eq!(exception(vector, error).unwrap_err().kind(), ErrorKind::Invalid, "{vector}");
        }
        assert!(check(Inject::PageFault { address: Gva(1 << 63), error: 2 }).is_ok());
        assert!(check(Inject::Interrupt { vector: 16 }).is_ok() && check(Inject::Nmi).is_ok());
        assert!(check(Inject::Interrupt { vector: 15 }).is_err());
    }
}
