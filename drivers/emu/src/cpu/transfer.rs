//! Transfers between privilege levels and code segments: SYSCALL, SYSRET, IRET, far RET and JMP.

use iced_x86::Instruction;
use vmtree_api::x86::Segment;

use super::Exception;
use super::bits::*;
use super::descriptor::{about, empty_stack, vector};
use super::vcpu::{Core, GP0, Outcome};

/// Code of 64 bits as SYSCALL sets it, but for the DPL.
const FLAT_CODE: u16 = 0xa09b;
/// Data as SYSCALL sets it, but for the DPL.
const FLAT_DATA: u16 = 0xc093;

/// A segment that SYSCALL or SYSRET sets: flat, whatever the descriptor tables say.
fn flat(selector: u16, attr: u16) -> Segment {
    Segment { selector, base: 0, limit: u32::MAX, attr: attr | (selector & 3) << 5 }
}

/// Where an outward transfer leads.
struct Target {
    rip: u64,
    cs: Segment,
    rsp: u64,
    ss: Segment,
}

impl Core<'_> {
    /// SYSCALL.
    pub fn syscall(&mut self, ins: &Instruction) -> Outcome {
        let regs = &mut self.vcpu.cpu.regs;
        if regs.efer & EFER_SCE == 0 {
            return Err(Exception::INVALID_OPCODE);
        }
        let selector = (regs.star >> 32) as u16 & 0xfffc;
        regs.gpr[1] = ins.next_ip();
        regs.gpr[11] = regs.rflags & !RFLAGS_RF;
        regs.rip = regs.lstar;
        regs.rflags = regs.rflags & !(regs.fmask | RFLAGS_RF) | RFLAGS_FIXED;
        regs.cs = flat(selector, FLAT_CODE);
        regs.ss = flat(selector.wrapping_add(8), FLAT_DATA);
        Ok(())
    }

    /// SYSRET to 64-bit code. To 32-bit code it is refused: this machine runs none.
    pub fn sysret(&mut self, wide: bool) -> Outcome {
        let regs = &self.vcpu.cpu.regs;
        if regs.efer & EFER_SCE == 0 {
            return Err(Exception::INVALID_OPCODE);
        }
        self.privileged()?;
        let regs = &mut self.vcpu.cpu.regs;
        if !wide || !canonical(regs.gpr[1]) {
            return Err(GP0);
        }
        let selector = (regs.star >> 48) as u16;
        regs.rip = regs.gpr[1];
        regs.rflags = regs.gpr[11] & 0x003c_7fd7 | RFLAGS_FIXED;
        regs.cs = flat(selector.wrapping_add(16) | 3, FLAT_CODE);
        regs.ss = flat(selector.wrapping_add(8) | 3, FLAT_DATA);
        Ok(())
    }

    /// SWAPGS.
    pub fn swapgs(&mut self) -> Outcome {
        self.privileged()?;
        let regs = &mut self.vcpu.cpu.regs;
        std::mem::swap(&mut regs.gs.base, &mut regs.kernel_gs_base);
        Ok(())
    }

    /// Reads `N` words of `size` bytes from the top of the stack on.
    fn stack_words<const N: usize>(&mut self, size: usize, skip: u64) -> Result<[u64; N], Exception> {
        let rsp = self.vcpu.cpu.regs.gpr[4].wrapping_add(skip);
        let mut bytes = [0; 64];
        let bytes = &mut bytes[..N * size];
        self.read(rsp, bytes).map_err(Exception::on_stack)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks(size)) {
            *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        Ok(words)
    }

    /// IRET with words of `size` bytes (volume 2A, IRET: 64-bit mode).
    pub fn iret(&mut self, size: usize) -> Outcome {
        if self.vcpu.cpu.regs.rflags & RFLAGS_NT != 0 {
            return Err(GP0);
        }
        let [rip, cs, flags, rsp, ss] = self.stack_words(size, 0)?;
        let target = self.outward(rip, cs as u16, rsp, ss as u16)?;
        let cpl = self.vcpu.cpu.cpl();
        let mut changed = RFLAGS_KNOWN & !(RFLAGS_FIXED | RFLAGS_VM);
        if cpl > 0 {
            changed &= !(RFLAGS_IOPL | RFLAGS_VIF | RFLAGS_VIP);
        }
        if cpl > self.iopl() {
            changed &= !RFLAGS_IF;
        }
        if size == 2 {
            changed &= 0xffff;
        }
        let rflags = &mut self.vcpu.cpu.regs.rflags;
        *rflags = *rflags & !changed | flags & changed;
        self.vcpu.nmi_blocked = false;
        self.arrive(&target);
        Ok(())
    }

    /// Far RET with words of `size` bytes, which releases `extra` bytes on both stacks.
    pub fn far_return(&mut self, size: usize, extra: u64) -> Outcome {
        let [rip, cs] = self.stack_words(size, 0)?;
        let after = self.vcpu.cpu.regs.gpr[4].wrapping_add(2 * size as u64 + extra);
        let outer = cs as u16 & 3 != u16::from(self.vcpu.cpu.cpl());
        let target = if outer {
            let [rsp, ss] = self.stack_words(size, 2 * size as u64 + extra)?;
            self.outward(rip, cs as u16, rsp.wrapping_add(extra), ss as u16)?
        } else {
            let segment = self.code_to_return_to(cs as u16)?;
            if !canonical(rip) {
                return Err(GP0);
            }
            Target { rip, cs: segment, rsp: after, ss: self.vcpu.cpu.regs.ss }
        };
        self.arrive(&target);
        Ok(())
    }

    /// Far JMP through memory: to a code segment of 64 bits at the same level. Gates are refused.
    pub fn far_jump(&mut self, ins: &Instruction, size: usize) -> Outcome {
        let mut bytes = [0; 10];
        let bytes = &mut bytes[..size + 2];
        self.load_operand(ins, bytes)?;
        let (offset, selector) = bytes.split_at(size);
        let rip = offset.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let selector = u16::from_le_bytes([selector[0], selector[1]]);
        if selector & 0xfffc == 0 {
            return Err(GP0);
        }
        let cpl = u16::from(self.vcpu.cpu.cpl());
        let mut code = self.descriptor(selector, 8, 0)?;
        let fits =
            if code.is_conforming() { code.dpl() <= cpl } else { code.dpl() == cpl && selector & 3 <= cpl };
        if !code.is_code() || !code.is_long() || !fits {
            return Err(about(vector::GP, selector, 0));
        }
        if !code.present() {
            return Err(about(vector::NP, selector, 0));
        }
        if !canonical(rip) {
            return Err(GP0);
        }
        self.mark_descriptor(&mut code, 1)?;
        let regs = &mut self.vcpu.cpu.regs;
        regs.cs = code.segment(selector & 0xfffc | cpl);
        regs.rip = rip;
        Ok(())
    }

    /// Checks the code segment that a return leads to. Segments of 32-bit code are refused: this machine runs none.
    fn code_to_return_to(&mut self, selector: u16) -> Result<Segment, Exception> {
        let rpl = selector & 3;
        if selector & 0xfffc == 0 {
            return Err(GP0);
        }
        let mut code = self.descriptor(selector, 8, 0)?;
        let fits = if code.is_conforming() { code.dpl() <= rpl } else { code.dpl() == rpl };
        if rpl < u16::from(self.vcpu.cpu.cpl()) || !code.is_code() || !code.is_long() || !fits {
            return Err(about(vector::GP, selector, 0));
        }
        if !code.present() {
            return Err(about(vector::NP, selector, 0));
        }
        self.mark_descriptor(&mut code, 1)?;
        Ok(code.segment(selector))
    }

    /// Checks where a return that also pops the stack leads.
    fn outward(&mut self, rip: u64, cs: u16, rsp: u64, ss: u16) -> Result<Target, Exception> {
        let rpl = cs & 3;
        let segment = self.code_to_return_to(cs)?;
        let stack = if ss & 0xfffc != 0 {
            self.stack_for(ss, rpl, vector::GP)?
        } else if rpl != 3 && ss & 3 == rpl {
            empty_stack(rpl)
        } else {
            return Err(GP0);
        };
        if !canonical(rip) {
            return Err(GP0);
        }
        Ok(Target { rip, cs: segment, rsp, ss: stack })
    }

    /// Goes there. Segments that the outer level may not use are emptied.
    fn arrive(&mut self, target: &Target) {
        let outward = target.cs.selector & 3 > u16::from(self.vcpu.cpu.cpl());
        let regs = &mut self.vcpu.cpu.regs;
        regs.rip = target.rip;
        regs.cs = target.cs;
        regs.gpr[4] = target.rsp;
        regs.ss = target.ss;
        if !outward {
            return;
        }
        let cpl = target.cs.selector & 3;
        for segment in [&mut regs.es, &mut regs.ds, &mut regs.fs, &mut regs.gs] {
            let conforming = segment.attr & 0x1c == 0x1c;
            if segment.attr >> 5 & 3 < cpl && !conforming {
                // The base stays, as with MSRs that hold it: 64-bit code sets it apart from the selector.
                *segment = Segment { base: segment.base, ..Segment::default() };
            }
        }
    }
}
