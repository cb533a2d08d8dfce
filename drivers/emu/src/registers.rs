//! Registers from outside: a snapshot, and writes that the CPU itself would accept.

use std::sync::Arc;
use std::time::Duration;

use vmtree_api::x86::{Reg, Registers as Regs};
use vmtree_api::{
    Arch, Error, ErrorKind, Missing, Msrs, Pace, RegId, RegOffer, RegValue, RegisterSet, Registers, Result,
    VcpuId,
};

use crate::cpu::check::{self, Refused};
use crate::cpu::msr::{self, Failure};
use crate::cpu::vcpu::Vcpu;
use crate::machine::{Machine, State};
use crate::phys::World;

const READ: &str = "read registers";
const WRITE: &str = "write registers";

/// The registers of a machine.
pub struct Access {
    machine: Arc<Machine>,
    offers: Vec<RegOffer>,
}

impl Access {
    /// All registers of the architecture are offered.
    pub fn new(machine: Arc<Machine>) -> Self {
        let ids = 0..Arch::X86_64.registers().len() as u16;
        let offers = ids.map(|id| RegOffer { id: RegId(id), writable: true }).collect();
        Self { machine, offers }
    }
}

fn refused(name: &str, why: &str) -> Error {
    Error::new(ErrorKind::Invalid, WRITE, format!("{name}: {why}"))
}

/// What becomes of a number written to `reg`; `before` is the whole set before the write.
fn number(reg: Reg, value: u64, before: &Regs) -> std::result::Result<u64, Refused> {
    match reg {
        Reg::Rip | Reg::Lstar | Reg::Cstar | Reg::KernelGsBase | Reg::SysenterEsp | Reg::SysenterEip => {
            check::address(value)
        }
        Reg::Rflags => check::rflags(value),
        Reg::Cr0 => match check::cr0(value)? {
            held if held == value => Ok(value),
            _ => Err("ET (bit 4) is always set, and it has only PE MP EM TS ET NE WP AM NW CD PG"),
        },
        Reg::Cr3 => check::cr3(value),
        Reg::Cr4 => check::cr4(value),
        Reg::Cr8 => check::cr8(value),
        Reg::Xcr0 => check::xcr0(value),
        Reg::Dr6 => check::dr6(value),
        Reg::Dr7 => check::dr7(value),
        Reg::Efer => match check::efer(value, before.efer)? {
            held if held == value => Ok(value),
            _ => Err("LMA says that 64-bit mode is on, which it stays"),
        },
        Reg::Fmask | Reg::SysenterCs | Reg::TscAux => check::half(value),
        Reg::Pat => check::pat(value),
        Reg::ApicBase => check::apic_base(value, before.apic_base),
        _ => Ok(value),
    }
}

/// The set after these changes, or why it can't be.
fn changed(before: &Regs, changes: &[(RegId, RegValue)]) -> Result<Regs> {
    let mut set = RegisterSet::X86_64(Box::new(before.clone()));
    let mut loaded = false;
    for (id, value) in changes {
        let value = match (Reg::from_id(*id), value) {
            (Some(reg), RegValue::Word(word)) => {
                let name = Arch::X86_64.registers().get(usize::from(id.0)).map_or("", |def| def.name);
                RegValue::Word(number(reg, *word, before).map_err(|why| refused(name, why))?)
            }
            (Some(reg @ (Reg::Gdtr | Reg::Idtr)), RegValue::Table(table)) => {
                let name = if reg == Reg::Gdtr { "gdtr" } else { "idtr" };
                check::address(table.base).map_err(|why| refused(name, why))?;
                *value
            }
            (_, value) => {
                loaded |= matches!(value, RegValue::Segment(_));
                *value
            }
        };
        set.set(*id, value)?;
    }
    let RegisterSet::X86_64(after) = set else {
        return Err(Error::new(ErrorKind::Invalid, WRITE, "these are not the registers of an x86-64 vCPU"));
    };
    if loaded {
        check::segments(&after).map_err(|(name, why)| refused(name, why))?;
    }
    Ok(*after)
}

/// Sets registers of a vCPU: all or nothing. What it was stopped at is forgotten if RIP changes.
///
/// # Errors
/// As [`Registers::write`].
pub fn set(state: &mut State, index: usize, changes: &[(RegId, RegValue)]) -> Result<()> {
    let State { vcpus, world, .. } = state;
    let Some(vcpu) = vcpus.get_mut(index).filter(|_| !changes.is_empty()) else { return Ok(()) };
    let before = vcpu.snapshot(world);
    let after = changed(&before, changes)?;
    if after.rip != before.rip {
        vcpu.trap.moved(after.rip);
    }
    commit(vcpu, world, &before, after);
    Ok(())
}

/// Puts a checked set in place.
fn commit(vcpu: &mut Vcpu, world: &mut World, before: &Regs, after: Regs) {
    if after.tsc != before.tsc {
        vcpu.tsc_offset = after.tsc.wrapping_sub(world.now());
    }
    if let Some(apic) = world.apics.get_mut(vcpu.id) {
        if after.apic_base != before.apic_base {
            apic.set_present(after.apic_base >> 11 & 1 != 0);
        }
        if after.cr8 != before.cr8 {
            apic.set_tpr((after.cr8 as u8) << 4);
        }
    }
    vcpu.cpu.regs = after;
    vcpu.tlb.flush();
}

impl Registers for Access {
    fn offers(&self) -> &[RegOffer] {
        &self.offers
    }

    fn pace(&self) -> Pace {
        Pace::Prompt
    }

    fn read(&self, vcpu: VcpuId) -> Result<RegisterSet> {
        let visit = self.machine.visit(READ)?;
        let index = visit.index(READ, vcpu)?;
        Ok(RegisterSet::X86_64(Box::new(visit.vcpus[index].snapshot(&visit.world))))
    }

    fn read_some(&self, vcpu: VcpuId, _wanted: &[RegId]) -> Result<RegisterSet> {
        Registers::read(self, vcpu)
    }

    fn cost(&self) -> Option<Duration> {
        None
    }

    fn write(&self, vcpu: VcpuId, changes: &[(RegId, RegValue)]) -> Result<()> {
        let mut visit = self.machine.visit(WRITE)?;
        let index = visit.index(WRITE, vcpu)?;
        set(&mut visit, index, changes)?;
        visit.changed();
        Ok(())
    }

    fn msrs(&self) -> std::result::Result<&dyn Msrs, Missing> {
        Ok(self)
    }
}

fn no_msr(op: &'static str, index: u32) -> Error {
    Error::new(ErrorKind::NotFound, op, format!("a vCPU of the built-in machine has no MSR {index:#x}"))
}

impl Msrs for Access {
    fn read(&self, vcpu: VcpuId, index: u32) -> Result<u64> {
        const OP: &str = "read MSR";
        let visit = self.machine.visit(OP)?;
        let vcpu = &visit.vcpus[visit.index(OP, vcpu)?];
        msr::read(vcpu, &visit.world, index).ok_or_else(|| no_msr(OP, index))
    }

    fn write(&self, vcpu: VcpuId, index: u32, value: u64) -> Result<()> {
        const OP: &str = "write MSR";
        let mut visit = self.machine.visit(OP)?;
        let number = visit.index(OP, vcpu)?;
        let State { vcpus, world, .. } = &mut *visit;
        let vcpu: &mut Vcpu = &mut vcpus[number];
        msr::write(vcpu, world, index, value).map_err(|failure| match failure {
            Failure::Unknown => no_msr(OP, index),
            Failure::Value(why) => {
                Error::new(ErrorKind::Invalid, OP, format!("MSR {index:#x} can't hold {value:#x}: {why}"))
            }
        })?;
        visit.changed();
        Ok(())
    }
}
