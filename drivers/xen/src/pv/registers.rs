//! Registers of a PV vCPU: read at one instant, written all or none.

use std::sync::Arc;
use std::time::Duration;

use vmtree_api::x86::bits::{CR0_PG, CR4_PAE, EFER_LMA, EFER_NXE};
use vmtree_api::x86::{PagingMode, Reg, Registers as Regs, Segment, check, walk};
use vmtree_api::{
    Error, ErrorKind, Gpa, Gva, MachineMemory, Memory, Missing, Msrs, Pace, RegId, RegOffer, RegValue,
    RegisterSet, Registers, Result, VcpuId,
};

use super::context::Place;
use super::{context, lacks, segments};
use crate::error::{is, number, refused};
use crate::memory::DomainMemory;
use crate::owner::Owner;
use crate::registers::{name, off};
use crate::world::World;

const READ: &str = "read registers";
const WRITE: &str = "write registers";

/// The registers of a PV domain.
pub struct Access {
    owner: Arc<Owner>,
    offers: Vec<RegOffer>,
}

impl Access {
    /// Those that Xen's context of a vCPU has.
    #[must_use]
    pub fn new(owner: Arc<Owner>) -> Self {
        let offer = |(reg, writable): (Reg, bool)| RegOffer { id: reg.id(), writable };
        let mut offers: Vec<RegOffer> = context::offers().map(offer).collect();
        offers.sort_by_key(|offer| offer.id);
        Self { owner, offers }
    }
}

impl World {
    fn context(&mut self, op: &'static str, vcpu: u32) -> Result<Vec<u8>> {
        match self.xen.context(vcpu) {
            Ok(context) => Ok(context),
            Err(error) if is(&error, number::ENODATA) => Err(off(op, vcpu)),
            Err(error) => Err(self.refused(op, "Xen does not tell the state of the vCPU", error)),
        }
    }

    /// The registers in a context; without segments it is cheaper.
    fn context_registers(&self, context: &[u8], whole: bool) -> Regs {
        let mut regs = context::all(context);
        for reg in context::segments().filter(|_| whole) {
            let RegValue::Segment(segment) = regs.get(reg) else { continue };
            let whole = hidden(&self.shared.memory, context, regs.cr3, reg, segment);
            regs.set(reg, RegValue::Segment(whole));
        }
        regs
    }

    fn write_context(&mut self, vcpu: u32, changes: &[(RegId, RegValue)]) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        // From the load to the store nobody may run.
        self.paused(WRITE, |world| {
            let before = world.context(WRITE, vcpu)?;
            let mut after = before.clone();
            let regs = world.context_registers(&before, true);
            for (id, value) in changes {
                change(&mut after, &regs, *id, *value)?;
            }
            world.put_context(vcpu, &before, &after, changes)
        })
    }

    /// Puts a context in place, and looks whether Xen has taken all of it: it leaves out what it does not like.
    fn put_context(
        &mut self,
        vcpu: u32,
        before: &[u8],
        after: &[u8],
        changes: &[(RegId, RegValue)],
    ) -> Result<()> {
        let extended = self
            .xen
            .extended(vcpu)
            .map_err(|error| refused(WRITE, "Xen does not tell the extended state", error))?;
        let outcome =
            self.store_context(vcpu, after, &extended).and_then(|()| self.taken(vcpu, after, changes));
        if outcome.is_ok() {
            return outcome;
        }
        if let Err(error) = self.store_context(vcpu, before, &extended) {
            log::error!("{WRITE}: the old state could not be put back: {error}");
        }
        outcome
    }

    /// Whether the vCPU has the registers that were put into a context.
    fn taken(&mut self, vcpu: u32, wanted: &[u8], changes: &[(RegId, RegValue)]) -> Result<()> {
        let (now, wanted) = (context::all(&self.context(WRITE, vcpu)?), context::all(wanted));
        let mut changed = changes.iter().filter_map(|(id, _)| Reg::from_id(*id));
        match changed.find(|reg| now.get(*reg) != wanted.get(*reg)) {
            None => Ok(()),
            Some(reg) => Err(invalid(reg, "Xen does not take the value")),
        }
    }

    fn store_context(&mut self, vcpu: u32, context: &[u8], extended: &[u8]) -> Result<()> {
        let stored = self.xen.set_context(vcpu, context);
        let stored = stored
            .and_then(|()| if extended.is_empty() { Ok(()) } else { self.xen.set_extended(vcpu, extended) });
        stored.map_err(|error| self.refused(WRITE, "Xen refuses one of the values", error))
    }
}

fn invalid(reg: Reg, why: &str) -> Error {
    Error::new(ErrorKind::Invalid, WRITE, format!("{}: {why}", name(reg)))
}

/// Puts one checked value into a context.
fn change(context: &mut [u8], now: &Regs, id: RegId, value: RegValue) -> Result<()> {
    let known = Reg::from_id(id).and_then(|reg| context::offers().find(|(is, _)| *is == reg));
    let refuse =
        |reg, why: &str| Err(Error::new(ErrorKind::Unsupported, WRITE, format!("{}: {why}", name(reg))));
    let Some((reg, writable)) = known else {
        return Err(Error::new(ErrorKind::NotFound, WRITE, "a PV vCPU has no such register"));
    };
    if !writable {
        return refuse(reg, "Xen lets no tool change it in a PV guest");
    }
    match (reg, value, now.get(reg)) {
        (_, RegValue::Segment(new), RegValue::Segment(old)) => {
            if (Segment { base: old.base, ..new }) != old {
                return refuse(reg, "of a PV guest's segment the base alone can be changed");
            }
            check::address(new.base, now.cr4)
        }
        (Reg::Rflags, RegValue::Word(new), _) => check::rflags(new, true),
        (Reg::Rip | Reg::Rsp | Reg::KernelGsBase, RegValue::Word(new), _) => check::address(new, now.cr4),
        (Reg::Dr6 | Reg::Dr7, RegValue::Word(new), _) => {
            check::need(new >> 32 == 0, "bits 63:32 are reserved")
        }
        _ => Ok(()),
    }
    .map_err(|why| invalid(reg, why))?;
    if context::set(context, reg, value) {
        Ok(())
    } else {
        Err(invalid(reg, "it takes another kind of value"))
    }
}

/// A segment register with its hidden part, as the guest's descriptor tables have it; not present where they have none.
fn hidden(memory: &DomainMemory, context: &[u8], cr3: u64, reg: Reg, segment: Segment) -> Segment {
    let selector = segment.selector;
    if segments::is_null(selector) {
        return segment;
    }
    let found = if segments::is_reserved(selector) {
        segments::of_xen(selector)
    } else {
        match context::descriptor(context, selector) {
            Some(Place::Machine(address)) => word(memory, Gpa(address)),
            Some(Place::Virtual(address)) => translate(memory, cr3, address).and_then(|at| word(memory, at)),
            None => None,
        }
    };
    let Some(descriptor) = found else { return segment };
    let whole = segments::segment(selector, descriptor);
    // Bases of others count for nothing in 64-bit code.
    if matches!(reg, Reg::Fs | Reg::Gs) { Segment { base: segment.base, ..whole } } else { whole }
}

/// A word at a machine address.
fn word(memory: &DomainMemory, machine: Gpa) -> Option<u64> {
    let mut bytes = [0; 8];
    let read = Memory::read(memory, memory.gpa(machine).ok()?, &mut bytes).ok()?;
    (read == bytes.len()).then(|| u64::from_le_bytes(bytes))
}

/// The machine address of a virtual one.
fn translate(memory: &DomainMemory, cr3: u64, address: u64) -> Option<Gpa> {
    let mode = PagingMode { cr0: CR0_PG, cr3, cr4: CR4_PAE, efer: EFER_LMA | EFER_NXE };
    walk(&mode, Gva(address), |at| word(memory, at).ok_or(())).ok()?.ok().map(|found| found.gpa)
}

impl Registers for Access {
    fn offers(&self) -> &[RegOffer] {
        &self.offers
    }

    fn pace(&self) -> Pace {
        Pace::Posted
    }

    fn read(&self, vcpu: VcpuId) -> Result<RegisterSet> {
        self.get(vcpu, true)
    }

    fn read_some(&self, vcpu: VcpuId, wanted: &[RegId]) -> Result<RegisterSet> {
        let whole = context::segments().any(|reg| wanted.contains(&reg.id()));
        self.get(vcpu, whole)
    }

    fn cost(&self) -> Option<Duration> {
        None
    }

    fn write(&self, vcpu: VcpuId, changes: &[(RegId, RegValue)]) -> Result<()> {
        let changes = changes.to_vec();
        self.owner.ask(WRITE, move |world| {
            let vcpu = world.vcpu(WRITE, vcpu)?;
            world.write_context(vcpu, &changes)
        })
    }

    fn msrs(&self) -> std::result::Result<&dyn Msrs, Missing> {
        Err(super::missing(lacks::MSRS))
    }
}

impl Access {
    fn get(&self, vcpu: VcpuId, whole: bool) -> Result<RegisterSet> {
        let regs = self.owner.ask(READ, move |world| {
            let vcpu = world.vcpu(READ, vcpu)?;
            let context = world.context(READ, vcpu)?;
            Ok(world.context_registers(&context, whole))
        })?;
        Ok(RegisterSet::X86_64(Box::new(regs)))
    }
}
