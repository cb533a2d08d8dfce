//! What every part of the guest's code is written with.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::layout::{frame, percpu};
use crate::mailbox::{Counter, slot};

/// The result of emitting code: an error is a mistake in this crate, which its tests find.
pub type Emit = Result<(), IcedError>;

/// A word of memory at a fixed address below 2 GiB.
pub fn at(address: u64) -> AsmMemoryOperand {
    qword_ptr(address as i32)
}

/// A word of the vCPU's own area, which R14 points at.
pub fn own(offset: i32) -> AsmMemoryOperand {
    qword_ptr(r14 + offset)
}

/// A word of the order slot that RBX points at.
pub fn slot_word(offset: u64) -> AsmMemoryOperand {
    qword_ptr(rbx + offset as i32)
}

/// Argument `n` of the order whose slot RBX points at.
pub fn arg(n: u64) -> AsmMemoryOperand {
    slot_word(slot::ARGS + 8 * n)
}

/// Result `n` of the order whose slot RBX points at.
pub fn result(n: u64) -> AsmMemoryOperand {
    slot_word(slot::RESULTS + 8 * n)
}

/// Puts a label here. Unlike `set_label`, several may stand at one place.
pub fn place(a: &mut CodeAssembler, label: &mut CodeLabel) -> Emit {
    a.set_label(label)?;
    a.zero_bytes()
}

/// Adds one to a counter of the vCPU, which R15 points at. One instruction, so no interrupt can split it.
pub fn count(a: &mut CodeAssembler, counter: Counter) -> Emit {
    a.inc(qword_ptr(r15 + 8 * counter as i32))
}

/// The body, R12 times. It must keep R12.
pub fn repeat(a: &mut CodeAssembler, body: impl FnOnce(&mut CodeAssembler) -> Emit) -> Emit {
    let (mut top, mut end) = (a.create_label(), a.create_label());
    a.test(r12, r12)?;
    a.je(end)?;
    place(a, &mut top)?;
    body(a)?;
    a.dec(r12)?;
    a.jne(top)?;
    place(a, &mut end)
}

/// Saves the general registers, as [`frame`] has them.
pub fn push_all(a: &mut CodeAssembler) -> Emit {
    for register in SAVED {
        a.push(register)?;
    }
    Ok(())
}

/// Undoes [`push_all`].
pub fn pop_all(a: &mut CodeAssembler) -> Emit {
    for register in SAVED.into_iter().rev() {
        a.pop(register)?;
    }
    Ok(())
}

const SAVED: [AsmRegister64; 15] = [rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15];

/// Finds the vCPU's area and counters from the stack pointer: every kernel stack lies in its vCPU's aligned area,
/// so this holds whatever GS is, in an NMI between two instructions of the system call entry too.
pub fn load_own(a: &mut CodeAssembler) -> Emit {
    a.mov(r14, rsp)?;
    a.and(r14, -(crate::layout::AREA as i32))?;
    a.mov(r15, own(percpu::COUNTERS))
}

/// ZF clear when the saved registers at RBP are those of ring 3.
pub fn test_user(a: &mut CodeAssembler) -> Emit {
    a.test(byte_ptr(rbp + frame::CS), 3)
}

/// Reads an MSR into RAX. Changes RCX and RDX.
pub fn read_msr(a: &mut CodeAssembler, index: u32) -> Emit {
    a.mov(ecx, index)?;
    a.rdmsr()?;
    count(a, Counter::MsrReads)?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)
}

/// Writes RAX to an MSR. Changes RCX and RDX.
pub fn write_msr(a: &mut CodeAssembler, index: u32) -> Emit {
    a.mov(ecx, index)?;
    a.mov(rdx, rax)?;
    a.shr(rdx, 32)?;
    a.wrmsr()?;
    count(a, Counter::MsrWrites)
}

/// Stores a double word to a register of the local APIC. Changes RCX.
pub fn write_apic(a: &mut CodeAssembler, register: u64, value: u32) -> Emit {
    a.mov(ecx, register as u32)?;
    a.mov(dword_ptr(rcx), value)
}

/// Stores an immediate word. Changes RAX.
pub fn store(a: &mut CodeAssembler, to: AsmMemoryOperand, value: u64) -> Emit {
    a.mov(rax, value)?;
    a.mov(to, rax)
}

/// Zeroes `bytes` bytes at RDI. Changes RAX, RCX and RDI.
pub fn zero(a: &mut CodeAssembler, bytes: u64) -> Emit {
    a.xor(eax, eax)?;
    a.mov(ecx, (bytes / 8) as u32)?;
    a.rep().stosq()
}

/// Jumps to the label when EAX is the value.
pub fn on(a: &mut CodeAssembler, value: u32, label: CodeLabel) -> Emit {
    a.cmp(eax, value)?;
    a.je(label)
}
