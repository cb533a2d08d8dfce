//! The MSRs of this machine, by index (Intel SDM volume 4).

use vmtree_api::x86::Registers;

use super::check::{self, Refused};
use super::vcpu::Vcpu;
use crate::phys::World;
use crate::ram::APIC_BASE;

const TSC: u32 = 0x10;
const IA32_APIC_BASE: u32 = 0x1b;
const MISC_ENABLE: u32 = 0x1a0;
const EFER: u32 = 0xc000_0080;

/// Fast string operations are on: the one bit of IA32_MISC_ENABLE that says something here.
pub const MISC_ENABLE_INIT: u64 = 1;

/// Why an MSR is not written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// There is none with this index.
    Unknown,
    /// It can't hold this value.
    Value(Refused),
}

/// IA32_APIC_BASE of a vCPU: the address, EN where it is there, BSP for the first.
#[must_use]
pub fn apic_base(vcpu: usize, present: bool) -> u64 {
    APIC_BASE | u64::from(present) << 11 | u64::from(vcpu == 0) << 8
}

type Rule = fn(u64) -> Result<u64, Refused>;

/// An MSR that is a register and nothing more: its place, and what it can hold.
fn plain(regs: &mut Registers, index: u32) -> Option<(&mut u64, Rule)> {
    let any: Rule = Ok;
    Some(match index {
        0x174 => (&mut regs.sysenter_cs, check::half),
        0x175 => (&mut regs.sysenter_esp, check::address),
        0x176 => (&mut regs.sysenter_eip, check::address),
        0x277 => (&mut regs.pat, check::pat),
        0xc000_0081 => (&mut regs.star, any),
        0xc000_0082 => (&mut regs.lstar, check::address),
        0xc000_0083 => (&mut regs.cstar, check::address),
        0xc000_0084 => (&mut regs.fmask, check::half),
        0xc000_0100 => (&mut regs.fs.base, check::address),
        0xc000_0101 => (&mut regs.gs.base, check::address),
        0xc000_0102 => (&mut regs.kernel_gs_base, check::address),
        0xc000_0103 => (&mut regs.tsc_aux, check::half),
        _ => return None,
    })
}

/// Reads one; `None` where there is none.
#[must_use]
pub fn read(vcpu: &Vcpu, world: &World, index: u32) -> Option<u64> {
    let mut regs = vcpu.snapshot(world);
    match index {
        TSC => Some(regs.tsc),
        IA32_APIC_BASE => Some(regs.apic_base),
        MISC_ENABLE => Some(vcpu.misc_enable),
        EFER => Some(regs.efer),
        _ => plain(&mut regs, index).map(|(place, _)| *place),
    }
}

/// What becomes of a value written to one.
///
/// # Errors
/// Why it is not written.
pub fn check(vcpu: &Vcpu, world: &World, index: u32, value: u64) -> Result<u64, Failure> {
    let mut regs = vcpu.snapshot(world);
    match index {
        TSC => Ok(value),
        IA32_APIC_BASE => check::apic_base(value, regs.apic_base).map_err(Failure::Value),
        // Bits 0 (fast strings), 16 (MONITOR) and 22 (limited CPUID) are stored and do nothing.
        MISC_ENABLE if value & !0x0041_0001 != 0 => Err(Failure::Value("only bits 0, 16 and 22 are there")),
        MISC_ENABLE => Ok(value),
        EFER => check::efer(value, regs.efer).map_err(Failure::Value),
        _ => {
            let (_, rule) = plain(&mut regs, index).ok_or(Failure::Unknown)?;
            rule(value).map_err(Failure::Value)
        }
    }
}

/// Writes one.
///
/// # Errors
/// Why not; nothing is changed then.
pub fn write(vcpu: &mut Vcpu, world: &mut World, index: u32, value: u64) -> Result<(), Failure> {
    let value = check(vcpu, world, index, value)?;
    match index {
        TSC => vcpu.tsc_offset = value.wrapping_sub(world.now()),
        IA32_APIC_BASE => {
            if let Some(apic) = world.apics.get_mut(vcpu.id) {
                apic.set_present(value >> 11 & 1 != 0);
            }
        }
        MISC_ENABLE => vcpu.misc_enable = value,
        EFER => {
            vcpu.cpu.regs.efer = value;
            vcpu.tlb.flush();
        }
        _ => {
            if let Some((place, _)) = plain(&mut vcpu.cpu.regs, index) {
                *place = value;
            }
        }
    }
    Ok(())
}
