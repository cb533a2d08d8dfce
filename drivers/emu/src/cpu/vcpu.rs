//! One vCPU with all that is not in its registers, and its place in the world.

use iced_x86::{Instruction, OpKind, Register};

use super::bits::RFLAGS_IOPL;
use super::exec::operand::fault;
use super::fetch::Decoded;
use super::grants::Trap;
use super::linear::Linear;
use super::mmu::{Mode, Tlb};
use super::xsave::X87;
use super::{Cpu, Exception};
use crate::phys::World;

/// Whether a vCPU executes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Activity {
    /// It does.
    #[default]
    Running,
    /// It waits for an interrupt, after HLT.
    Halted,
    /// It stopped for good: a triple fault.
    Dead,
}

/// What an instruction keeps from interrupting the next one (Intel SDM volume 3A, 6.8).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Shadow {
    /// Nothing.
    #[default]
    None,
    /// Interrupts, after STI.
    Sti,
    /// Interrupts and single-step traps, after a load of SS.
    Stack,
}

/// A vCPU.
#[derive(Default)]
pub struct Vcpu {
    /// Its number, which is its APIC id.
    pub id: usize,
    /// Its architectural state. CR8, TSC and APIC_BASE live elsewhere; [`Vcpu::snapshot`] fills them in.
    pub cpu: Cpu,
    /// Whether it executes.
    pub activity: Activity,
    /// What the last instruction keeps out.
    pub shadow: Shadow,
    /// An NMI is being handled: the next one waits for IRET.
    pub nmi_blocked: bool,
    /// The state of the x87 FPU, which nothing here computes with.
    pub x87: X87,
    /// IA32_MISC_ENABLE.
    pub misc_enable: u64,
    /// What its TSC is ahead of virtual time.
    pub tsc_offset: u64,
    /// Its translations.
    pub tlb: Tlb,
    /// Its decoded instructions.
    pub decoded: Decoded,
    /// What it is intercepted by.
    pub trap: Trap,
}

impl Vcpu {
    /// The registers with those filled in that live elsewhere.
    #[must_use]
    pub fn snapshot(&self, world: &World) -> vmtree_api::x86::Registers {
        let mut regs = self.cpu.regs.clone();
        regs.tsc = self.tsc(world);
        if let Some(apic) = world.apics.get(self.id) {
            regs.cr8 = u64::from(apic.tpr() >> 4);
            regs.apic_base = super::msr::apic_base(self.id, apic.present());
        }
        regs
    }

    /// Moves it to another view.
    pub fn switch(&mut self, view: u32) {
        if self.trap.view != view {
            self.trap.view = view;
            self.tlb.flush();
        }
    }

    /// The TSC: 1 a nanosecond of virtual time.
    #[must_use]
    pub fn tsc(&self, world: &World) -> u64 {
        world.now().wrapping_add(self.tsc_offset)
    }
}

/// A vCPU at work in the world.
pub struct Core<'a> {
    /// The vCPU.
    pub vcpu: &'a mut Vcpu,
    /// What lies behind it.
    pub world: &'a mut World,
}

/// What a system instruction or an event may end with.
pub type Outcome = Result<(), Exception>;

/// #GP(0).
pub const GP0: Exception = Exception::protection(0);

impl Core<'_> {
    /// The state and, beside it, the memory side.
    pub fn split(&mut self) -> (&mut Cpu, Linear<'_>, &mut Decoded) {
        let Vcpu { id, cpu, tlb, decoded, trap, .. } = &mut *self.vcpu;
        (cpu, Linear { vcpu: *id, tlb, trap, world: self.world }, decoded)
    }

    /// Reads as the code that runs.
    pub fn read(&mut self, address: u64, buf: &mut [u8]) -> Outcome {
        let mode = Mode::of(&self.vcpu.cpu);
        self.read_as(mode, address, buf)
    }

    /// Reads on behalf of `mode`.
    pub fn read_as(&mut self, mode: Mode, address: u64, buf: &mut [u8]) -> Outcome {
        let (cpu, mut linear, _) = self.split();
        linear.read_as(cpu, mode, address, buf)
    }

    /// Writes as the code that runs.
    pub fn write(&mut self, address: u64, data: &[u8]) -> Outcome {
        let mode = Mode::of(&self.vcpu.cpu);
        self.write_as(mode, address, data)
    }

    /// Writes on behalf of `mode`.
    pub fn write_as(&mut self, mode: Mode, address: u64, data: &[u8]) -> Outcome {
        let (cpu, mut linear, _) = self.split();
        linear.write_as(cpu, mode, address, data)
    }

    /// Writes several parts: all of them, or nothing.
    pub fn write_parts(&mut self, parts: &[(u64, &[u8])]) -> Outcome {
        let (cpu, mut linear, _) = self.split();
        linear.write_parts(cpu, Mode::of(cpu), parts)
    }

    /// Reads 8 bytes on behalf of the CPU itself.
    pub fn read_u64(&mut self, address: u64) -> Result<u64, Exception> {
        let (cpu, mut linear, _) = self.split();
        linear.read_u64(cpu, address)
    }

    /// #GP(0) at any privilege level but 0.
    pub fn privileged(&self) -> Outcome {
        if self.vcpu.cpu.cpl() == 0 { Ok(()) } else { Err(GP0) }
    }

    /// The privilege level up to which ports and IF may be touched.
    #[must_use]
    pub fn iopl(&self) -> u8 {
        ((self.vcpu.cpu.regs.rflags & RFLAGS_IOPL) >> 12) as u8
    }

    /// A general register of 16, 32 or 64 bits, or AL.
    #[must_use]
    pub fn gpr(&self, register: Register) -> u64 {
        let value = self.vcpu.cpu.regs.gpr[register.number() & 15];
        match register.size() {
            1 => value & 0xff,
            2 => value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        }
    }

    /// Sets a general register of 16, 32 or 64 bits, or AL.
    pub fn set_gpr(&mut self, register: Register, value: u64) {
        let whole = &mut self.vcpu.cpu.regs.gpr[register.number() & 15];
        *whole = match register.size() {
            1 => *whole & !0xff | value & 0xff,
            2 => *whole & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }

    /// The linear address of the memory operand.
    #[must_use]
    pub fn address(&self, ins: &Instruction) -> u64 {
        let regs = &self.vcpu.cpu.regs;
        let found = ins.virtual_address(memory_operand(ins), 0, |register, _, _| match register {
            Register::FS => Some(regs.fs.base),
            Register::GS => Some(regs.gs.base),
            _ if register.is_segment_register() => Some(0),
            _ => Some(self.gpr(register)),
        });
        found.unwrap_or(0)
    }

    /// Reads the memory operand.
    pub fn load_operand(&mut self, ins: &Instruction, buf: &mut [u8]) -> Outcome {
        self.read(self.address(ins), buf).map_err(|exception| fault(ins, exception))
    }

    /// Writes the memory operand.
    pub fn store_operand(&mut self, ins: &Instruction, data: &[u8]) -> Outcome {
        self.write(self.address(ins), data).map_err(|exception| fault(ins, exception))
    }

    /// The value of operand `op`, a register or 2 bytes of memory.
    pub fn word(&mut self, ins: &Instruction, op: u32) -> Result<u16, Exception> {
        if ins.op_kind(op) == OpKind::Register {
            return Ok(self.gpr(ins.op_register(op)) as u16);
        }
        let mut bytes = [0; 2];
        self.load_operand(ins, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Stores into operand 0: a whole register, or 2 bytes of memory.
    pub fn store_word(&mut self, ins: &Instruction, value: u64) -> Outcome {
        if ins.op_kind(0) == OpKind::Register {
            self.set_gpr(ins.op_register(0), value);
            return Ok(());
        }
        self.store_operand(ins, &(value as u16).to_le_bytes())
    }
}

fn memory_operand(ins: &Instruction) -> u32 {
    (0..ins.op_count()).find(|op| ins.op_kind(*op) == OpKind::Memory).unwrap_or(0)
}
