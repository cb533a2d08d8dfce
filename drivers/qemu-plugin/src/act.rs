//! What is done to a held vCPU: whether a verdict can be carried out, and carrying it out.

use std::sync::{Mutex, PoisonError};

use vmtree_agent::server::Refusal;
use vmtree_agent::{Code, Event, Inject, Kind, Reg, Verdict, Way, flag};

use crate::decode::{Op, Site};
use crate::offers;
use crate::sense::{control, gpr, msr_register};
use crate::vcpu::{Vcpu, all_settable};

/// A page fault that is under way: the vCPU was sent to an address that is not mapped, and the fault that this gives is
/// made the one that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The address that it was sent to, its own among all that are under way.
    pub bogus: u64,
    /// Where it was.
    pub rip: u64,
    /// CR2 as it is to be.
    pub address: u64,
    /// The error code as it is to be.
    pub error: u32,
}

/// What was delivered to a vCPU that was sent to an address for its page fault.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Delivered {
    /// That page fault: the one that was asked for.
    Fault,
    /// Something else, at the instruction at this address.
    Interrupt {
        /// The address.
        at: u64,
    },
}

/// The page faults that are under way.
#[derive(Default)]
pub struct Faults(Mutex<Vec<Fault>>);

impl Faults {
    /// What a delivery at `from` is to a vCPU that may have been sent there: its page fault, which is made the one that was
    /// asked for, or an interrupt that came first. Then that returns to `from`, and the fault is still to come; where the
    /// vCPU really is, is given. `None` where it was not sent there.
    pub fn delivered(&self, cpu: &mut dyn Vcpu, from: u64) -> Option<Delivered> {
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let index = faults.iter().position(|fault| fault.bogus == from)?;
        // The address is its own, so CR2 has it only by its own fault.
        if cpu.get(Reg::Cr2) != from {
            return faults.get(index).map(|fault| Delivered::Interrupt { at: fault.rip });
        }
        patch(cpu, &faults.swap_remove(index));
        Some(Delivered::Fault)
    }

    /// Sends a vCPU to an address that is not mapped, of which the fault becomes this one. `None` where all are mapped.
    fn send(&self, cpu: &dyn Vcpu, rip: u64, address: u64, error: u32) -> Option<u64> {
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Any page that is not mapped will do: first of those that 32-bit code under a 64-bit kernel can be sent to as well,
        // then of the upper half of user space.
        let low = (0..1024).map(|page: u64| 0xffff_f000_u64.wrapping_sub(page << 22));
        let high = (0..512).map(|page: u64| 0x7000_0000_0000_u64.wrapping_sub(page << 30));
        let page = low.chain(high).find(|page| cpu.translate(*page).is_none())?;
        let used = |bogus: &u64| faults.iter().any(|fault| fault.bogus == *bogus);
        let bogus = (0..4096).map(|offset| page + offset).find(|bogus| !used(bogus))?;
        faults.push(Fault { bogus, rip, address, error });
        Some(bogus)
    }
}

/// Bits of a page fault's error code (Intel SDM volume 3A, 4.7).
const PRESENT: u32 = 1;
const USER: u32 = 4;
const FETCH: u32 = 16;

/// Whether a register can hold a value at all.
///
/// # Errors
/// It can't, and why.
pub fn fits(reg: Reg, value: u64) -> Result<(), Refusal> {
    let reserved = match reg {
        // Bits 63 to 32 must be zero; PG needs PE, and NW needs CD (Intel SDM volume 3A, 2.5).
        Reg::Cr0 => {
            value >> 32 != 0 || value & 0x8000_0001 == 0x8000_0000 || value & 0x6000_0000 == 0x2000_0000
        }
        Reg::Cr3 => value >> 52 & 0x7ff != 0,
        Reg::Cr4 => value >> 32 != 0,
        Reg::Cr8 => value > 15,
        Reg::FsBase | Reg::GsBase | Reg::KernelGsBase | Reg::Rip => (value as i64) << 7 >> 7 != value as i64,
        _ => false,
    };
    if reserved { Err(Refusal::new(Code::Invalid, "the register can't hold that value")) } else { Ok(()) }
}

fn invalid(why: &str) -> Refusal {
    Refusal::new(Code::Invalid, why)
}

/// Whether this verdict can be carried out for this event.
///
/// # Errors
/// It can't, and why.
pub fn check(event: &Event, verdict: &Verdict) -> Result<(), Refusal> {
    match offers::takes(event.kind, event.way, verdict.action()) {
        None => return Err(invalid("such an event has no such answer")),
        Some(Err(why)) => return Err(Refusal::new(Code::Unsupported, why)),
        Some(Ok(())) => {}
    }
    crate::flags::check(event, verdict)?;
    let faults = match verdict {
        Verdict::Inject(Inject::PageFault { .. }) => true,
        Verdict::Deny => event.kind == Kind::Slat,
        _ => false,
    };
    if faults && event.flags & flag::NO_FAULT != 0 {
        let why =
            "a page fault can be made in long mode alone: its frame and its addresses are others elsewhere";
        return Err(Refusal::new(Code::Unsupported, why));
    }
    match verdict {
        Verdict::Continue | Verdict::Deny | Verdict::Step => Ok(()),
        Verdict::Value(value) => check_value(event, *value),
        Verdict::Set(registers) => all_settable(registers),
        Verdict::Inject(Inject::PageFault { .. }) => Ok(()),
        Verdict::Inject(_) => Err(Refusal::new(
            Code::Unsupported,
            "only page faults can be injected through QEMU's plugin interface",
        )),
    }
}

fn check_value(event: &Event, value: u128) -> Result<(), Refusal> {
    let bits = match event.kind {
        Kind::Cpuid => 128,
        Kind::Io => event.extra * 8,
        _ => 64,
    };
    if bits < 128 && value >> bits != 0 {
        return Err(invalid("the value is too large for what it replaces"));
    }
    if event.kind == Kind::Io && event.flags & flag::STRING != 0 {
        return Err(Refusal::new(Code::Unsupported, "a string instruction's data can't be replaced"));
    }
    if event.flags & flag::PART != 0 {
        return Err(Refusal::new(Code::Unsupported, "SMSW reads a part of CR0, which can't be replaced"));
    }
    let register = match (event.kind, event.way) {
        (Kind::Cr0, Way::To) => Reg::Cr0,
        (Kind::Cr3, Way::To) => Reg::Cr3,
        (Kind::Cr4, Way::To) => Reg::Cr4,
        (Kind::Msr, Way::To) => msr_register(event.index).ok_or_else(|| {
            let why = "QEMU's plugin interface writes no MSR but EFER, FS_BASE, GS_BASE and KERNEL_GS_BASE";
            Refusal::new(Code::Unsupported, why)
        })?,
        _ => return Ok(()),
    };
    fits(register, value as u64)
}

/// Carries out a verdict that was checked. Where the vCPU is to go on elsewhere than at its instruction.
pub fn carry_out(
    cpu: &mut dyn Vcpu,
    site: Site,
    event: &Event,
    verdict: Verdict,
    faults: &Faults,
) -> Option<u64> {
    let after = site.after(event.rip);
    match verdict {
        Verdict::Continue | Verdict::Step => None,
        // A fetch can't just not take place: it gets #PF, present and with the right that it lacked.
        Verdict::Deny if event.kind == Kind::Slat => {
            let error = PRESENT | FETCH | if event.cpl == 3 { USER } else { 0 };
            faults.send(cpu, event.rip, event.rip, error)
        }
        Verdict::Deny => Some(after),
        Verdict::Value(value) => {
            replace(cpu, site, event, value);
            Some(after)
        }
        Verdict::Set(registers) => {
            let mut moved = None;
            for (reg, value) in registers {
                if reg == Reg::Rip {
                    moved = Some(value);
                } else {
                    cpu.set(reg, value);
                }
            }
            moved
        }
        Verdict::Inject(Inject::PageFault { address, error }) => faults.send(cpu, event.rip, address, error),
        Verdict::Inject(_) => None,
    }
}

/// Does what the instruction does, with another value.
fn replace(cpu: &mut dyn Vcpu, site: Site, event: &Event, value: u128) {
    let low = |shift: u32| (value >> shift) as u32;
    match (site.op, event.way) {
        (Op::MovToCr | Op::Clts | Op::Lmsw, _) => {
            let reg = control(site.number).map_or(Reg::Cr0, |(_, reg)| reg);
            cpu.set(reg, value as u64);
        }
        (Op::MovFromCr, _) => {
            if let Some(reg) = gpr(site.gpr) {
                cpu.set(reg, value as u64);
            }
        }
        (Op::Wrmsr, _) => {
            if let Some(reg) = msr_register(event.index) {
                cpu.set(reg, value as u64);
            }
        }
        (Op::Hypercall, _) => {
            cpu.set(Reg::Rax, value as u64);
        }
        (Op::Cpuid, _) => {
            for (reg, shift) in [(Reg::Rax, 0), (Reg::Rbx, 32), (Reg::Rcx, 64), (Reg::Rdx, 96)] {
                cpu.set(reg, u64::from(low(shift)));
            }
        }
        (Op::In, _) => {
            let old = cpu.get(Reg::Rax);
            let new = match site.number {
                1 => old & !0xff | u64::from(low(0) as u8),
                2 => old & !0xffff | u64::from(low(0) as u16),
                _ => u64::from(low(0)),
            };
            cpu.set(Reg::Rax, new);
        }
        _ => {}
    }
}

/// Makes the page fault that has just been delivered the one that was asked for: its frame is on the stack.
fn patch(cpu: &mut dyn Vcpu, fault: &Fault) {
    let frame = cpu.get(Reg::Rsp);
    cpu.write(frame, &u64::from(fault.error).to_le_bytes());
    cpu.write(frame.wrapping_add(8), &fault.rip.to_le_bytes());
    cpu.set(Reg::Cr2, fault.address);
}
