//! A vCPU as events and verdicts need it: the real one, or one made up in a test.

use vmtree_agent::server::{Refusal, Registers};
use vmtree_agent::{Code, Event, Reg, flag};

use crate::sys::{Cpu, has};

/// A vCPU in one of its own callbacks.
pub trait Vcpu {
    /// Its number.
    fn number(&self) -> u32;
    /// A register. The instruction pointer may be that of an earlier instruction nearby.
    fn get(&self, reg: Reg) -> u64;
    /// Sets a register; whether it was set.
    fn set(&mut self, reg: Reg, value: u64) -> bool;
    /// Reads virtual memory; whether all was read.
    fn read(&self, address: u64, buf: &mut [u8]) -> bool;
    /// Writes virtual memory, whatever its rights; whether all was written.
    fn write(&mut self, address: u64, data: &[u8]) -> bool;
    /// The physical address of a virtual one, where it is mapped.
    fn translate(&self, address: u64) -> Option<u64>;
}

impl Vcpu for Cpu {
    fn number(&self) -> u32 {
        self.vcpu
    }

    fn get(&self, reg: Reg) -> u64 {
        Cpu::get(self, reg)
    }

    fn set(&mut self, reg: Reg, value: u64) -> bool {
        reg != Reg::Cr8 && Cpu::set(self, reg, value)
    }

    fn read(&self, address: u64, buf: &mut [u8]) -> bool {
        Cpu::read(self, address, buf)
    }

    fn write(&mut self, address: u64, data: &[u8]) -> bool {
        Cpu::write(self, address, data)
    }

    fn translate(&self, address: u64) -> Option<u64> {
        Cpu::translate(self, address)
    }
}

/// The privilege level that it runs at.
pub fn cpl(cpu: &dyn Vcpu) -> u8 {
    // In real mode the selector is an address, and the level is 0.
    if cpu.get(Reg::Cr0) & 1 == 0 { 0 } else { (cpu.get(Reg::Cs) & 3) as u8 }
}

/// The registers that a client may see of a vCPU held at `rip`.
pub struct Shown<'a> {
    /// The vCPU.
    cpu: &'a mut dyn Vcpu,
    /// Where it is held.
    rip: u64,
    /// Where it goes on instead, if the client moved it.
    pub moved: Option<u64>,
    /// Whether it would lose its arithmetic flags there.
    split: bool,
}

impl<'a> Shown<'a> {
    /// Of a vCPU that is about to be held at this event.
    pub fn at(event: &Event, cpu: &'a mut dyn Vcpu) -> Self {
        Self { cpu, rip: event.rip, moved: None, split: event.flags & flag::FLAGS_LOST != 0 }
    }
}

/// Whether QEMU's interface can set a register faithfully.
pub fn settable(reg: Reg) -> Result<(), &'static str> {
    match reg {
        _ if !has::write_register() => {
            Err("this QEMU's plugin interface can't write registers; it can from QEMU 10.2 on")
        }
        Reg::Rip if !has::set_pc() => {
            Err("this QEMU's plugin interface can't set rip; it can from QEMU 11.0 on")
        }
        Reg::Cr8 => Err(crate::offers::NO_CR8),
        Reg::Rflags => Err("the plugin interface sets rflags without the arithmetic flags"),
        Reg::Cs | Reg::Ss | Reg::Ds | Reg::Es | Reg::Fs | Reg::Gs => {
            Err("the plugin interface sets a selector without the checks that a load of it makes")
        }
        _ => Ok(()),
    }
}

/// Whether all of these can be set.
///
/// # Errors
/// The first that can't, with the reason.
pub fn all_settable(registers: &[(Reg, u64)]) -> Result<(), Refusal> {
    for (reg, value) in registers {
        settable(*reg).map_err(|why| Refusal::new(Code::Unsupported, why))?;
        crate::act::fits(*reg, *value)?;
    }
    Ok(())
}

impl Registers for Shown<'_> {
    fn read(&mut self) -> Vec<(Reg, u64)> {
        // The flags that arithmetic sets are not where the interface looks.
        let shown = Reg::ALL.iter().filter(|reg| **reg != Reg::Rflags);
        let value =
            |reg: Reg| if reg == Reg::Rip { self.moved.unwrap_or(self.rip) } else { self.cpu.get(reg) };
        shown.map(|reg| (*reg, value(*reg))).collect()
    }

    fn write(&mut self, registers: &[(Reg, u64)]) -> Result<(), Refusal> {
        all_settable(registers)?;
        if self.split && registers.iter().any(|(reg, _)| *reg == Reg::Rip) {
            return Err(crate::flags::lost());
        }
        for (reg, value) in registers {
            if *reg == Reg::Rip {
                self.moved = Some(*value);
            } else if !self.cpu.set(*reg, *value) {
                return Err(Refusal::new(Code::Invalid, "QEMU did not take the value"));
            }
        }
        Ok(())
    }
}
