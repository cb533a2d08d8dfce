//! Registers, by Xen's records of the domain: read at one instant, written all or none.

mod check;
pub mod convert;
pub mod msrs;
pub mod records;

use std::sync::Arc;
use std::time::Duration;

use vmtree_api::x86::{Reg, Registers as Regs};
use vmtree_api::{
    Arch, Error, ErrorKind, Missing, Msrs, Pace, RegId, RegOffer, RegValue, RegisterSet, Registers, Result,
    VcpuId,
};

use crate::error::{is, number};
use crate::events::answers::table;
use crate::owner::Owner;
use crate::world::World;
use records::{Records, kind};

const READ: &str = "read registers";
const WRITE: &str = "write registers";

/// The registers of a domain.
pub struct Access {
    owner: Arc<Owner>,
    offers: Vec<RegOffer>,
}

impl Access {
    /// All registers of the architecture are offered.
    #[must_use]
    pub fn new(owner: Arc<Owner>) -> Self {
        let ids = 0..Arch::X86_64.registers().len() as u16;
        let offers = ids.map(|id| RegOffer { id: RegId(id), writable: true }).collect();
        Self { owner, offers }
    }
}

/// A register's name.
#[must_use]
pub fn name(reg: Reg) -> &'static str {
    Arch::X86_64.registers().get(usize::from(reg.id().0)).map_or("it", |def| def.name)
}

impl World {
    /// All records of the domain.
    ///
    /// # Errors
    /// Those of Xen.
    pub fn records(&mut self, op: &'static str) -> Result<Records> {
        let bytes = self.xen.load();
        let bytes =
            bytes.map_err(|error| self.refused(op, "Xen does not tell the state of the vCPUs", error))?;
        Records::parse(bytes)
    }

    /// The record of registers of one vCPU alone.
    ///
    /// # Errors
    /// Those of Xen; [`ErrorKind::Busy`] for a vCPU that is off.
    pub fn cpu_record(&mut self, op: &'static str, vcpu: u32) -> Result<Records> {
        match self.xen.record(kind::CPU, vcpu, convert::CPU_BYTES) {
            Ok(bytes) => Ok(Records::of(kind::CPU, vcpu, bytes)),
            Err(error) if is(&error, number::ENOENT) || is(&error, number::ENODEV) => Err(off(op, vcpu)),
            Err(error) => Err(self.refused(op, "Xen does not tell the state of the vCPU", error)),
        }
    }

    fn read_registers(&mut self, vcpu: u32, whole: bool) -> Result<Regs> {
        let records = if whole { self.records(READ)? } else { self.cpu_record(READ, vcpu)? };
        if records.get(kind::CPU, vcpu).is_none() {
            return Err(off(READ, vcpu));
        }
        let mut regs = convert::all(&records, vcpu);
        // Xen may have taken RIP past the instruction that a held vCPU is about to do.
        if let Some(parked) = self.events.held.get(&vcpu)
            && table::is_past(&parked.request.cause)
            && !parked.moved
        {
            regs.rip = parked.request.rip;
        }
        Ok(regs)
    }

    /// Sets registers of a vCPU for its user; where it is held, that counts for the answer.
    fn write_registers(&mut self, vcpu: u32, changes: &[(RegId, RegValue)]) -> Result<()> {
        self.put_registers(WRITE, vcpu, changes)?;
        if let Some(parked) = self.events.held.get_mut(&vcpu) {
            parked.dirty |= !changes.is_empty();
            parked.moved |= changes.iter().any(|(id, _)| *id == Reg::Rip.id());
        }
        Ok(())
    }

    /// Sets registers of a vCPU: all or none.
    ///
    /// # Errors
    /// As [`Registers::write`].
    pub fn put_registers(
        &mut self,
        op: &'static str,
        vcpu: u32,
        changes: &[(RegId, RegValue)],
    ) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        // From the load to the store nobody may run: the store puts back the state of all vCPUs.
        self.paused(op, |world| {
            let mut records = world.records(op)?;
            let kinds = put(op, &mut records, vcpu, changes)?;
            world.store(op, &records, vcpu, &kinds)
        })
    }

    /// Puts records in place; the domain stands still.
    fn store(&mut self, op: &'static str, records: &Records, vcpu: u32, kinds: &[u16]) -> Result<()> {
        let before = self.records(op)?.part(vcpu, kinds);
        let Err(error) = self.xen.store(&records.part(vcpu, kinds)) else { return Ok(()) };
        // Xen may have taken a part of it, and has stopped the vCPUs that it had not come to.
        if let Err(error) = self.xen.store(&before) {
            log::error!("{op}: the old state could not be put back: {error}");
        }
        Err(self.refused(op, "Xen refuses one of the values", error))
    }
}

/// A vCPU that the guest has not started.
#[must_use]
pub fn off(op: &'static str, vcpu: u32) -> Error {
    Error::new(ErrorKind::Busy, op, format!("vCPU {vcpu} is off: the guest has not started it"))
}

/// Puts checked changes into the records, and tells which types of record have changed.
fn put(
    op: &'static str,
    records: &mut Records,
    vcpu: u32,
    changes: &[(RegId, RegValue)],
) -> Result<Vec<u16>> {
    if records.get(kind::CPU, vcpu).is_none() {
        return Err(off(op, vcpu));
    }
    let before = convert::all(records, vcpu);
    let mut set = RegisterSet::X86_64(Box::new(before.clone()));
    let mut kinds = Vec::new();
    for (id, value) in changes {
        set.set(*id, *value)?;
        let Some(reg) = Reg::from_id(*id) else { continue };
        if !convert::set(records, vcpu, reg, *value) {
            let why = match reg {
                Reg::Xcr0 => {
                    "xcr0: the guest has not turned XSAVE on yet, so there is no state to go with it"
                        .to_owned()
                }
                _ => format!("{}: this vCPU has none", name(reg)),
            };
            return Err(Error::new(ErrorKind::Invalid, op, why));
        }
        kinds.push(convert::record(convert::place(reg)));
    }
    // Once more together: the same register may be there twice.
    let after = convert::all(records, vcpu);
    check::changes(&before, &after)
        .map_err(|(reg, why)| Error::new(ErrorKind::Invalid, op, format!("{}: {why}", name(reg))))?;
    Ok(kinds)
}

/// Whether a register is in the record of registers, which is cheaper than all.
fn near(id: RegId) -> bool {
    Reg::from_id(id).is_some_and(|reg| convert::record(convert::place(reg)) == kind::CPU)
}

impl Registers for Access {
    fn offers(&self) -> &[RegOffer] {
        &self.offers
    }

    fn pace(&self) -> Pace {
        Pace::Posted
    }

    fn read(&self, vcpu: VcpuId) -> Result<RegisterSet> {
        let regs = self.owner.ask(READ, move |world| {
            let vcpu = world.vcpu(READ, vcpu)?;
            world.read_registers(vcpu, true)
        })?;
        Ok(RegisterSet::X86_64(Box::new(regs)))
    }

    fn read_some(&self, vcpu: VcpuId, wanted: &[RegId]) -> Result<RegisterSet> {
        let whole = !wanted.iter().all(|id| near(*id));
        let regs = self.owner.ask(READ, move |world| {
            let vcpu = world.vcpu(READ, vcpu)?;
            world.read_registers(vcpu, whole)
        })?;
        Ok(RegisterSet::X86_64(Box::new(regs)))
    }

    fn cost(&self) -> Option<Duration> {
        None
    }

    fn write(&self, vcpu: VcpuId, changes: &[(RegId, RegValue)]) -> Result<()> {
        let changes = changes.to_vec();
        self.owner.ask(WRITE, move |world| {
            let vcpu = world.vcpu(WRITE, vcpu)?;
            world.write_registers(vcpu, &changes)
        })
    }

    fn msrs(&self) -> std::result::Result<&dyn Msrs, Missing> {
        Ok(self)
    }
}

fn no_msr(op: &'static str, index: u32) -> Error {
    let why = format!("Xen has no MSR {index:#x} of this vCPU to tell, or it can't be written");
    Error::new(ErrorKind::NotFound, op, why)
}

impl Msrs for Access {
    fn read(&self, vcpu: VcpuId, index: u32) -> Result<u64> {
        const OP: &str = "read MSR";
        self.owner.ask(OP, move |world| {
            let vcpu = world.vcpu(OP, vcpu)?;
            msrs::get(&world.records(OP)?, vcpu, index).ok_or_else(|| no_msr(OP, index))
        })
    }

    fn write(&self, vcpu: VcpuId, index: u32, value: u64) -> Result<()> {
        const OP: &str = "write MSR";
        self.owner.ask(OP, move |world| {
            let vcpu = world.vcpu(OP, vcpu)?;
            world.write_msr(OP, vcpu, index, value)
        })
    }
}

impl World {
    /// Sets an MSR of a vCPU.
    ///
    /// # Errors
    /// As [`Msrs::write`].
    pub fn write_msr(&mut self, op: &'static str, vcpu: u32, index: u32, value: u64) -> Result<()> {
        self.paused(op, |world| {
            let mut records = world.records(op)?;
            let kinds = match msrs::set(&mut records, vcpu, index, value).ok_or_else(|| no_msr(op, index))? {
                msrs::Write::Register(reg, value) => put(op, &mut records, vcpu, &[(reg.id(), value)])?,
                msrs::Write::Record(kind) => vec![kind],
            };
            world.store(op, &records, vcpu, &kinds)
        })
    }
}
