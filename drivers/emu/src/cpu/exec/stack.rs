//! The stack: PUSH, POP, the flags on the stack, LEAVE. In 64-bit code its addresses have 64 bits.

use iced_x86::Register;

use super::flags::{AC, DF, ID, IF, IOPL, NT, RF, STATUS, TF, VM};
use super::{Exception, Outcome, Step};

impl Step<'_> {
    fn rsp(&self) -> u64 {
        self.gpr(Register::RSP)
    }

    /// Writes below the stack, then moves RSP.
    pub(super) fn push(&mut self, size: u32, value: u64) -> Result<(), Exception> {
        let rsp = self.rsp().wrapping_sub(u64::from(size));
        self.store(rsp, size, value).map_err(Exception::on_stack)?;
        self.set_gpr(Register::RSP, rsp);
        Ok(())
    }

    /// What is on top of the stack. RSP stays.
    pub(super) fn top(&mut self, size: u32) -> Result<u64, Exception> {
        self.load(self.rsp(), size).map_err(Exception::on_stack)
    }

    /// Releases `bytes` of the stack.
    pub(super) fn release(&mut self, bytes: u64) {
        let rsp = self.rsp().wrapping_add(bytes);
        self.set_gpr(Register::RSP, rsp);
    }

    /// How many bytes the instruction moves on the stack.
    fn stack_size(&self) -> u32 {
        self.ins.stack_pointer_increment().unsigned_abs()
    }
}

/// PUSH of a register, of memory or of an immediate.
pub(super) fn push(s: &mut Step) -> Outcome {
    let value = s.read(0)?;
    s.push(s.stack_size(), value)?;
    s.next()
}

/// POP to a register or memory. RSP is the new one already in the operand's address, and POP RSP keeps what it read.
pub(super) fn pop(s: &mut Step) -> Outcome {
    let size = s.stack_size();
    let value = s.top(size)?;
    if s.in_memory(0) {
        let on_stack = matches!(s.ins.memory_base(), Register::RSP | Register::ESP);
        let address = s.address(0, if on_stack { u64::from(size) } else { 0 });
        s.store(address, size, value)?;
        s.release(u64::from(size));
    } else {
        s.release(u64::from(size));
        s.write(0, value)?;
    }
    s.next()
}

/// PUSHF and PUSHFQ: RF and VM are seen as clear, bit 1 as set.
pub(super) fn pushf(s: &mut Step) -> Outcome {
    let flags = s.cpu.regs.rflags & !(RF | VM) | 2;
    s.push(s.stack_size(), flags)?;
    s.next()
}

/// POPF and POPFQ: IOPL changes at privilege level 0 only, IF at a level that IOPL allows. VM, VIF and VIP stay.
pub(super) fn popf(s: &mut Step) -> Outcome {
    let size = s.stack_size();
    let flags = s.top(size)?;
    let cpl = u64::from(s.cpu.cpl());
    let mut changed = STATUS | TF | DF | NT;
    if cpl == 0 {
        changed |= IOPL;
    }
    if cpl <= (s.cpu.regs.rflags & IOPL) >> 12 {
        changed |= IF;
    }
    if size == 8 {
        changed |= AC | ID | RF;
    }
    s.set_flags(changed, flags & !RF);
    s.release(u64::from(size));
    s.next()
}

/// LEAVE: the stack back to where RBP points, and RBP from there.
pub(super) fn leave(s: &mut Step) -> Outcome {
    let (size, to) = match s.ins.code() {
        iced_x86::Code::Leavew => (2, Register::BP),
        _ => (8, Register::RBP),
    };
    let frame = s.gpr(Register::RBP);
    let value = s.load(frame, size).map_err(Exception::on_stack)?;
    s.set_gpr(Register::RSP, frame.wrapping_add(u64::from(size)));
    s.set_gpr(to, value);
    s.next()
}
