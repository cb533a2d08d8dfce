//! The system instructions: one table from mnemonic to what it does.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use vmtree_api::events::{DescriptorTable, Detail, EventKind, Way};

use super::Exception;
use super::bits::{CR0_TS, CR4_OSXSAVE, CR4_TSD, RFLAGS_AC, RFLAGS_IF};
use super::grants::Answer;
use super::intercept::Register as Watched;
use super::interrupt::{Event, Origin};
use super::mmu::Mode;
use super::vcpu::{Activity, Core, GP0, Outcome, Shadow};
use super::{cpuid, msr};

/// What a system instruction ends with, if not with an exception.
#[derive(Clone, Copy, Debug)]
pub enum Then {
    /// RIP goes to the next instruction.
    Next,
    /// RIP is where it should be.
    Stay,
    /// An event of its own making is delivered.
    Deliver(Event),
}

/// What a hypervisor answers to a call that it does not know, and to one that is not made at privilege level 0: the
/// numbers are KVM's, KVM_ENOSYS and KVM_EPERM (Linux, Documentation/virt/kvm/x86/hypercalls.rst).
const UNKNOWN_CALL: u64 = 1000_u64.wrapping_neg();
const FORBIDDEN_CALL: u64 = 1_u64.wrapping_neg();

/// The interrupt that INT n, INT3 and INT1 make.
fn software(vector: u8, origin: Origin, ins: &Instruction) -> Then {
    Then::Deliver(Event { what: Exception::plain(vector), origin, rip: ins.next_ip(), injected: false })
}

impl Core<'_> {
    /// Executes a system instruction; #UD for what this machine has not.
    ///
    /// # Errors
    /// The exception it raises; nothing is changed then.
    pub fn system(&mut self, ins: &Instruction) -> Result<Then, Exception> {
        match ins.mnemonic() {
            Mnemonic::Int3 => {
                return Ok(match self.ask_breakpoint(ins.len())? {
                    true => software(3, Origin::SoftwareException, ins),
                    false => Then::Next,
                });
            }
            Mnemonic::Int => return Ok(software(ins.immediate8(), Origin::Software, ins)),
            Mnemonic::Int1 => return Ok(software(1, Origin::Privileged, ins)),
            Mnemonic::Syscall => return self.syscall(ins).map(|()| Then::Stay),
            Mnemonic::Sysretq => return self.sysret(true).map(|()| Then::Stay),
            Mnemonic::Sysret => return self.sysret(false).map(|()| Then::Stay),
            Mnemonic::Iretq => return self.iret(8).map(|()| Then::Stay),
            Mnemonic::Iretd => return self.iret(4).map(|()| Then::Stay),
            Mnemonic::Iret => return self.iret(2).map(|()| Then::Stay),
            Mnemonic::Retf | Mnemonic::Jmp => return self.far(ins).map(|()| Then::Stay),
            _ => {}
        }
        self.in_place(ins)?;
        Ok(Then::Next)
    }

    fn far(&mut self, ins: &Instruction) -> Outcome {
        match ins.code() {
            Code::Retfq => self.far_return(8, 0),
            Code::Retfq_imm16 => self.far_return(8, u64::from(ins.immediate16())),
            Code::Retfd => self.far_return(4, 0),
            Code::Retfd_imm16 => self.far_return(4, u64::from(ins.immediate16())),
            Code::Jmp_m1664 => self.far_jump(ins, 8),
            Code::Jmp_m1632 => self.far_jump(ins, 4),
            _ => Err(unknown(ins)),
        }
    }

    /// Instructions that go on to the next one.
    fn in_place(&mut self, ins: &Instruction) -> Outcome {
        match ins.mnemonic() {
            Mnemonic::Hlt => self.halt(),
            Mnemonic::Cli => self.set_interrupts(false),
            Mnemonic::Sti => self.set_interrupts(true),
            Mnemonic::Stac => self.set_access(true),
            Mnemonic::Clac => self.set_access(false),
            Mnemonic::Swapgs => self.swapgs(),
            Mnemonic::Invlpg | Mnemonic::Wbinvd | Mnemonic::Invd => {
                self.privileged()?;
                if ins.mnemonic() == Mnemonic::Invlpg {
                    self.vcpu.tlb.flush();
                }
                Ok(())
            }
            Mnemonic::Cpuid => self.cpuid(),
            Mnemonic::Vmcall | Mnemonic::Vmmcall => self.guest_request(),
            Mnemonic::Rdtsc | Mnemonic::Rdtscp => self.rdtsc(ins),
            Mnemonic::Rdmsr => self.rdmsr(),
            Mnemonic::Wrmsr => self.wrmsr(),
            Mnemonic::Xgetbv => self.xgetbv(),
            Mnemonic::Xsetbv => self.xsetbv(),
            Mnemonic::Xsave | Mnemonic::Xsave64 => self.xsave(ins),
            Mnemonic::Xrstor | Mnemonic::Xrstor64 => self.xrstor(ins),
            Mnemonic::In => self.port_in(ins),
            Mnemonic::Out => self.port_out(ins),
            _ => self.registers(ins),
        }
    }

    /// Control, debug, segment and table registers.
    fn registers(&mut self, ins: &Instruction) -> Outcome {
        match ins.mnemonic() {
            Mnemonic::Mov => self.mov(ins),
            Mnemonic::Push => self.push_segment(ins),
            Mnemonic::Pop => self.pop_segment(ins),
            Mnemonic::Clts => {
                self.privileged()?;
                self.set_cr0(self.vcpu.cpu.regs.cr0 & !CR0_TS)
            }
            Mnemonic::Lmsw => self.load_status(ins),
            Mnemonic::Smsw => self.store_status(ins),
            Mnemonic::Lldt | Mnemonic::Ltr | Mnemonic::Lgdt | Mnemonic::Lidt => {
                self.privileged()?;
                self.descriptor_tables(ins, Way::To)
            }
            Mnemonic::Sldt | Mnemonic::Str | Mnemonic::Sgdt | Mnemonic::Sidt => {
                self.descriptor_tables(ins, Way::From)
            }
            Mnemonic::Rdfsbase => self.segment_base(ins, Register::FS, false),
            Mnemonic::Rdgsbase => self.segment_base(ins, Register::GS, false),
            Mnemonic::Wrfsbase => self.segment_base(ins, Register::FS, true),
            Mnemonic::Wrgsbase => self.segment_base(ins, Register::GS, true),
            _ => Err(unknown(ins)),
        }
    }

    /// LGDT, SGDT and their like, once their privilege is checked.
    fn descriptor_tables(&mut self, ins: &Instruction, way: Way) -> Outcome {
        let table = match ins.mnemonic() {
            Mnemonic::Lgdt | Mnemonic::Sgdt => DescriptorTable::Gdtr,
            Mnemonic::Lidt | Mnemonic::Sidt => DescriptorTable::Idtr,
            Mnemonic::Lldt | Mnemonic::Sldt => DescriptorTable::Ldtr,
            _ => DescriptorTable::Tr,
        };
        let index = table as u32;
        if self.ask(EventKind::Descriptor, index, Detail::Descriptor { table, way })? == Answer::Drop {
            return Ok(());
        }
        let regs = &self.vcpu.cpu.regs;
        match (table, way) {
            (DescriptorTable::Gdtr, Way::To) => self.vcpu.cpu.regs.gdtr = self.load_table(ins)?,
            (DescriptorTable::Idtr, Way::To) => self.vcpu.cpu.regs.idtr = self.load_table(ins)?,
            (DescriptorTable::Ldtr, Way::To) => {
                let selector = self.word(ins, 0)?;
                self.load_ldtr(selector)?;
            }
            (DescriptorTable::Tr, Way::To) => {
                let selector = self.word(ins, 0)?;
                self.load_tr(selector)?;
            }
            (DescriptorTable::Gdtr, _) => self.store_table(ins, regs.gdtr)?,
            (DescriptorTable::Idtr, _) => self.store_table(ins, regs.idtr)?,
            (DescriptorTable::Ldtr, _) => self.store_word(ins, u64::from(regs.ldtr.selector))?,
            (DescriptorTable::Tr, _) => self.store_word(ins, u64::from(regs.tr.selector))?,
        }
        Ok(())
    }

    fn mov(&mut self, ins: &Instruction) -> Outcome {
        match ins.code() {
            Code::Mov_r64_cr => self.read_control(ins),
            Code::Mov_cr_r64 => self.write_control(ins),
            Code::Mov_r64_dr => self.read_debug(ins),
            Code::Mov_dr_r64 => self.write_debug(ins),
            Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg => {
                let selector = self.segment_register(ins.op1_register()).map_or(0, |place| place.selector);
                self.store_word(ins, u64::from(selector))
            }
            Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => {
                if ins.op0_register() == Register::CS {
                    return Err(Exception::INVALID_OPCODE);
                }
                let selector = self.word(ins, 1)?;
                self.load_segment(ins.op0_register(), selector)
            }
            _ => Err(unknown(ins)),
        }
    }

    /// PUSH FS and GS: the slot's upper bytes are zeros.
    fn push_segment(&mut self, ins: &Instruction) -> Outcome {
        let size = ins.stack_pointer_increment().unsigned_abs() as usize;
        let Some(place) = self.segment_register(ins.op0_register()) else { return Err(unknown(ins)) };
        let selector = u64::from(place.selector);
        let rsp = self.vcpu.cpu.regs.gpr[4].wrapping_sub(size as u64);
        self.write(rsp, &selector.to_le_bytes()[..size.min(8)]).map_err(Exception::on_stack)?;
        self.vcpu.cpu.regs.gpr[4] = rsp;
        Ok(())
    }

    fn pop_segment(&mut self, ins: &Instruction) -> Outcome {
        let size = ins.stack_pointer_increment().unsigned_abs();
        if !matches!(ins.op0_register(), Register::FS | Register::GS) {
            return Err(unknown(ins));
        }
        let rsp = self.vcpu.cpu.regs.gpr[4];
        let mut bytes = [0; 2];
        self.read(rsp, &mut bytes).map_err(Exception::on_stack)?;
        self.load_segment(ins.op0_register(), u16::from_le_bytes(bytes))?;
        self.vcpu.cpu.regs.gpr[4] = rsp.wrapping_add(u64::from(size));
        Ok(())
    }

    fn halt(&mut self) -> Outcome {
        self.privileged()?;
        self.vcpu.activity = Activity::Halted;
        Ok(())
    }

    fn set_interrupts(&mut self, on: bool) -> Outcome {
        if self.vcpu.cpu.cpl() > self.iopl() {
            return Err(GP0);
        }
        let rflags = &mut self.vcpu.cpu.regs.rflags;
        if on && *rflags & RFLAGS_IF == 0 {
            self.vcpu.shadow = Shadow::Sti;
        }
        *rflags = if on { *rflags | RFLAGS_IF } else { *rflags & !RFLAGS_IF };
        Ok(())
    }

    /// STAC and CLAC: #UD outside level 0.
    fn set_access(&mut self, on: bool) -> Outcome {
        self.privileged().map_err(|_| Exception::INVALID_OPCODE)?;
        let rflags = &mut self.vcpu.cpu.regs.rflags;
        *rflags = if on { *rflags | RFLAGS_AC } else { *rflags & !RFLAGS_AC };
        Ok(())
    }

    fn cpuid(&mut self) -> Outcome {
        let (leaf, subleaf) = (self.gpr(Register::EAX) as u32, self.gpr(Register::ECX) as u32);
        let found = match self.ask(EventKind::Cpuid, 0, Detail::Cpuid { leaf, subleaf })? {
            Answer::Data(value) => [0, 32, 64, 96].map(|bit| (value >> bit) as u32),
            _ => {
                let osxsave = self.vcpu.cpu.regs.cr4 & CR4_OSXSAVE != 0;
                cpuid::leaf(leaf, subleaf, self.vcpu.id as u32, self.world.apics.len() as u32, osxsave)
            }
        };
        for (register, value) in
            [Register::EAX, Register::EBX, Register::ECX, Register::EDX].iter().zip(found)
        {
            self.set_gpr(*register, u64::from(value));
        }
        Ok(())
    }

    /// VMCALL and VMMCALL.
    fn guest_request(&mut self) -> Outcome {
        let result = if self.vcpu.cpu.cpl() == 0 { UNKNOWN_CALL } else { FORBIDDEN_CALL };
        match self.ask(EventKind::GuestRequest, 0, Detail::GuestRequest)? {
            Answer::Drop => {}
            Answer::Data(value) => self.set_gpr(Register::RAX, value as u64),
            _ => self.set_gpr(Register::RAX, result),
        }
        Ok(())
    }

    pub fn set_pair(&mut self, value: u64) {
        self.set_gpr(Register::EAX, value);
        self.set_gpr(Register::EDX, value >> 32);
    }

    fn rdtsc(&mut self, ins: &Instruction) -> Outcome {
        if self.vcpu.cpu.regs.cr4 & CR4_TSD != 0 {
            self.privileged()?;
        }
        self.set_pair(self.vcpu.tsc(self.world));
        if ins.mnemonic() == Mnemonic::Rdtscp {
            self.set_gpr(Register::ECX, self.vcpu.cpu.regs.tsc_aux);
        }
        Ok(())
    }

    fn rdmsr(&mut self) -> Outcome {
        self.privileged()?;
        let index = self.gpr(Register::ECX) as u32;
        let value = msr::read(self.vcpu, self.world, index).ok_or(GP0)?;
        let value = self.ask_from(Watched::msr(index), value)?;
        self.set_pair(value);
        Ok(())
    }

    fn wrmsr(&mut self) -> Outcome {
        self.privileged()?;
        let index = self.gpr(Register::ECX) as u32;
        let value = self.gpr(Register::EDX) << 32 | self.gpr(Register::EAX);
        let old = msr::read(self.vcpu, self.world, index).ok_or(GP0)?;
        let Some(value) = self.ask_to(Watched::msr(index), old, value)? else { return Ok(()) };
        msr::write(self.vcpu, self.world, index, value).map_err(|_| GP0)
    }

    /// The port of IN or OUT in operand `op`, where the code that runs may touch `size` of them.
    fn port(&mut self, ins: &Instruction, op: u32, size: usize) -> Result<u16, Exception> {
        let port = match ins.op_kind(op) {
            OpKind::Immediate8 => u16::from(ins.immediate8()),
            _ => self.gpr(Register::DX) as u16,
        };
        if self.vcpu.cpu.cpl() > self.iopl() {
            self.port_allowed(port, size)?;
        }
        Ok(port)
    }

    /// The I/O permission bitmap of the TSS (Intel SDM volume 1, 19.5.2).
    fn port_allowed(&mut self, port: u16, size: usize) -> Outcome {
        let tr = self.vcpu.cpu.regs.tr;
        if tr.attr & 0x80 == 0 || tr.limit < 0x67 {
            return Err(GP0);
        }
        let mut map = [0; 2];
        self.read_as(Mode::Implicit, tr.base.wrapping_add(0x66), &mut map)?;
        let at = u64::from(u16::from_le_bytes(map)) + u64::from(port / 8);
        if at + 1 > u64::from(tr.limit) {
            return Err(GP0);
        }
        let mut bits = [0; 2];
        self.read_as(Mode::Implicit, tr.base.wrapping_add(at), &mut bits)?;
        let denied = u16::from_le_bytes(bits) >> (port % 8) & ((1 << size) - 1);
        if denied == 0 { Ok(()) } else { Err(GP0) }
    }

    fn port_in(&mut self, ins: &Instruction) -> Outcome {
        let register = ins.op0_register();
        let port = self.port(ins, 1, register.size())?;
        let detail = Detail::Io { port, bytes: register.size() as u8, value: None };
        let value = match self.ask(EventKind::Io, 0, detail)? {
            Answer::Data(value) => value as u32,
            _ => self.world.port_in(port),
        };
        self.set_gpr(register, u64::from(value));
        Ok(())
    }

    fn port_out(&mut self, ins: &Instruction) -> Outcome {
        let register = ins.op1_register();
        let port = self.port(ins, 0, register.size())?;
        let value = self.gpr(register) as u32;
        let detail = Detail::Io { port, bytes: register.size() as u8, value: Some(value) };
        match self.ask(EventKind::Io, 0, detail)? {
            Answer::Drop => {}
            Answer::Data(value) => self.world.port_out(port, value as u32),
            _ => self.world.port_out(port, value),
        }
        Ok(())
    }
}

/// #UD for an instruction that this machine does not have; the log says which.
fn unknown(ins: &Instruction) -> Exception {
    log::debug!("{:?} at {:#x} is not an instruction of the built-in machine", ins.code(), ins.ip());
    Exception::INVALID_OPCODE
}
