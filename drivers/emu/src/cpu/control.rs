//! Control and debug registers (Intel SDM volume 2, MOV; volume 3A, 2.5; volume 3B, 18.2).

use iced_x86::{Instruction, Register};
use vmtree_api::events::EventKind;

use super::bits::*;
use super::check::{self, Refused};
use super::intercept::Register as Watched;
use super::vcpu::{Core, GP0, Outcome};
use super::{Cpu, Exception};

fn gp(checked: Result<u64, Refused>) -> Result<u64, Exception> {
    checked.map_err(|_| GP0)
}

/// The kind of the events about a control register.
fn watched(register: Register) -> Option<EventKind> {
    match register {
        Register::CR0 => Some(EventKind::Cr0),
        Register::CR3 => Some(EventKind::Cr3),
        Register::CR4 => Some(EventKind::Cr4),
        Register::CR8 => Some(EventKind::Cr8),
        _ => None,
    }
}

impl Core<'_> {
    /// MOV to a general register from CRn.
    pub fn read_control(&mut self, ins: &Instruction) -> Outcome {
        self.privileged()?;
        let regs = &self.vcpu.cpu.regs;
        let value = match ins.op1_register() {
            Register::CR0 => regs.cr0,
            Register::CR2 => regs.cr2,
            Register::CR3 => regs.cr3,
            Register::CR4 => regs.cr4,
            Register::CR8 => self.cr8(),
            _ => return Err(Exception::INVALID_OPCODE),
        };
        let value = match watched(ins.op1_register()) {
            Some(kind) => self.ask_from(Watched::control(kind), value)?,
            None => value,
        };
        self.set_gpr(ins.op0_register(), value);
        Ok(())
    }

    /// MOV to CRn.
    pub fn write_control(&mut self, ins: &Instruction) -> Outcome {
        self.privileged()?;
        let value = self.gpr(ins.op1_register());
        match ins.op0_register() {
            Register::CR0 => self.set_cr0(value),
            Register::CR2 => {
                self.vcpu.cpu.regs.cr2 = value;
                Ok(())
            }
            Register::CR3 => self.set_cr3(value),
            Register::CR4 => self.set_cr4(value),
            Register::CR8 => self.set_cr8(value),
            _ => Err(Exception::INVALID_OPCODE),
        }
    }

    fn cr8(&self) -> u64 {
        self.world.apics.get(self.vcpu.id).map_or(0, |apic| u64::from(apic.tpr() >> 4))
    }

    /// Sets CR0.
    pub fn set_cr0(&mut self, value: u64) -> Outcome {
        let old = self.vcpu.cpu.regs.cr0;
        let Some(value) = self.ask_to(Watched::control(EventKind::Cr0), old, value)? else { return Ok(()) };
        self.vcpu.cpu.regs.cr0 = gp(check::cr0(value))?;
        self.vcpu.tlb.flush();
        Ok(())
    }

    fn set_cr3(&mut self, value: u64) -> Outcome {
        let old = self.vcpu.cpu.regs.cr3;
        let Some(value) = self.ask_to(Watched::control(EventKind::Cr3), old, value)? else { return Ok(()) };
        let regs = &mut self.vcpu.cpu.regs;
        regs.cr3 = gp(check::cr3(value))?;
        self.vcpu.tlb.flush_for_cr3(regs.cr4);
        Ok(())
    }

    fn set_cr4(&mut self, value: u64) -> Outcome {
        let old = self.vcpu.cpu.regs.cr4;
        let Some(value) = self.ask_to(Watched::control(EventKind::Cr4), old, value)? else { return Ok(()) };
        self.vcpu.cpu.regs.cr4 = gp(check::cr4(value))?;
        self.vcpu.tlb.flush();
        Ok(())
    }

    fn set_cr8(&mut self, value: u64) -> Outcome {
        let old = self.cr8();
        let Some(value) = self.ask_to(Watched::control(EventKind::Cr8), old, value)? else { return Ok(()) };
        let value = gp(check::cr8(value))?;
        if let Some(apic) = self.world.apics.get_mut(self.vcpu.id) {
            apic.set_tpr((value as u8) << 4);
        }
        Ok(())
    }

    /// The register that MOV DRn names: 4 and 5 are 6 and 7, unless CR4.DE forbids it. #DB where DR7.GD guards them.
    fn debug_register(&mut self, register: Register) -> Result<usize, Exception> {
        self.privileged()?;
        let Cpu { regs, .. } = &mut self.vcpu.cpu;
        let number = register.number();
        if number > 7 || matches!(number, 4 | 5) && regs.cr4 & CR4_DE != 0 {
            return Err(Exception::INVALID_OPCODE);
        }
        if regs.dr[7] & DR7_GD != 0 {
            regs.dr[7] &= !DR7_GD;
            regs.dr[6] |= DR6_BD;
            return Err(Exception::plain(1));
        }
        Ok(if matches!(number, 4 | 5) { number + 2 } else { number })
    }

    /// MOV from DRn.
    pub fn read_debug(&mut self, ins: &Instruction) -> Outcome {
        let number = self.debug_register(ins.op1_register())?;
        let value = self.ask_from(Watched::debug(number), self.vcpu.cpu.regs.dr[number])?;
        self.set_gpr(ins.op0_register(), value);
        Ok(())
    }

    /// MOV to DRn.
    pub fn write_debug(&mut self, ins: &Instruction) -> Outcome {
        let number = self.debug_register(ins.op0_register())?;
        let value = self.gpr(ins.op1_register());
        let old = self.vcpu.cpu.regs.dr[number];
        let Some(value) = self.ask_to(Watched::debug(number), old, value)? else { return Ok(()) };
        self.vcpu.cpu.regs.dr[number] = match number {
            6 => gp(check::dr6(value))?,
            7 => gp(check::dr7(value))?,
            _ => value,
        };
        Ok(())
    }

    /// LMSW: the low 4 bits of CR0; PE can be set, never cleared.
    pub fn load_status(&mut self, ins: &Instruction) -> Outcome {
        self.privileged()?;
        let value = u64::from(self.word(ins, 0)?);
        self.set_cr0(self.vcpu.cpu.regs.cr0 & !0xe | value & 0xf)
    }

    /// SMSW.
    pub fn store_status(&mut self, ins: &Instruction) -> Outcome {
        let value = self.ask_from(Watched::control(EventKind::Cr0), self.vcpu.cpu.regs.cr0)?;
        self.store_word(ins, value)
    }

    /// RDFSBASE, WRFSBASE and their like for GS.
    pub fn segment_base(&mut self, ins: &Instruction, segment: Register, write: bool) -> Outcome {
        if self.vcpu.cpu.regs.cr4 & CR4_FSGSBASE == 0 {
            return Err(Exception::INVALID_OPCODE);
        }
        let register = ins.op0_register();
        let value = self.gpr(register);
        let Some(place) = self.segment_register(segment) else { return Ok(()) };
        if write {
            place.base = gp(check::address(value))?;
        } else {
            let base = place.base;
            self.set_gpr(register, base);
        }
        Ok(())
    }
}
