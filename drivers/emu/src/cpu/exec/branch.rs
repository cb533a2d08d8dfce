//! Near branches. A target that is not canonical raises #GP(0) before anything changes.

use iced_x86::{Code, Register};

use super::flags::ZF;
use super::{Done, Exception, Outcome, Step};

const CR4_LA57: u64 = 1 << 12;

impl Step<'_> {
    /// Checks a target: with 57-bit addresses the upper 7 bits repeat bit 56, else the upper 16 bit 47.
    fn checked(&self, target: u64) -> Result<u64, Exception> {
        let unused = if self.cpu.regs.cr4 & CR4_LA57 != 0 { 7 } else { 16 };
        let canonical = ((target << unused) as i64 >> unused) as u64 == target;
        if canonical { Ok(target) } else { Err(Exception::protection(0)) }
    }

    /// Ends the instruction at `target`, which was checked.
    fn go(&mut self, target: u64) -> Outcome {
        self.cpu.regs.rip = target;
        Ok(Done::Next)
    }

    /// The target of a near JMP or CALL, checked. `None`: the branch is a far one, or 16 bits wide.
    fn target(&mut self) -> Result<Option<u64>, Exception> {
        let ins = self.ins;
        let target = match ins.code() {
            Code::Jmp_rel8_64 | Code::Jmp_rel32_64 | Code::Call_rel32_64 => ins.near_branch_target(),
            Code::Jmp_rm64 | Code::Call_rm64 => self.read(0)?,
            _ => return Ok(None),
        };
        self.checked(target).map(Some)
    }

    fn branch_if(&mut self, taken: bool) -> Outcome {
        let target = if taken { self.ins.near_branch64() } else { self.ins.next_ip() };
        let target = self.checked(target)?;
        self.go(target)
    }
}

/// JMP.
pub(super) fn jmp(s: &mut Step) -> Outcome {
    match s.target()? {
        Some(target) => s.go(target),
        None => Ok(Done::NotHere),
    }
}

/// CALL.
pub(super) fn call(s: &mut Step) -> Outcome {
    let Some(target) = s.target()? else { return Ok(Done::NotHere) };
    s.push(8, s.ins.next_ip())?;
    s.go(target)
}

/// RET, which can release arguments too.
pub(super) fn ret(s: &mut Step) -> Outcome {
    let arguments = match s.ins.code() {
        Code::Retnq => 0,
        Code::Retnq_imm16 => u64::from(s.ins.immediate16()),
        _ => return Ok(Done::NotHere),
    };
    let target = s.top(8)?;
    let target = s.checked(target)?;
    s.release(8 + arguments);
    s.go(target)
}

/// Jcc.
pub(super) fn conditional(s: &mut Step) -> Outcome {
    s.branch_if(super::mov::condition(s))
}

/// JRCXZ and JECXZ.
pub(super) fn if_zero(s: &mut Step, counter: Register) -> Outcome {
    s.branch_if(s.gpr(counter) == 0)
}

/// LOOP, LOOPE and LOOPNE: `zero` is what ZF must be, if it matters.
pub(super) fn counted(s: &mut Step, zero: Option<bool>) -> Outcome {
    let counter = match s.ins.code() {
        Code::Loop_rel8_64_ECX | Code::Loope_rel8_64_ECX | Code::Loopne_rel8_64_ECX => Register::ECX,
        _ => Register::RCX,
    };
    let left = s.gpr(counter).wrapping_sub(1) & super::operand::mask(counter.size() as u32);
    let done = s.branch_if(left != 0 && zero.is_none_or(|zero| zero == s.flag(ZF)))?;
    s.set_gpr(counter, left);
    Ok(done)
}
