//! The gates of all vectors, what each interrupt and exception does, and the way back.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::kit::{Emit, at, count, load_own, on, own, place, pop_all, push_all, test_user, write_apic};
use super::labels::Labels;
use crate::layout::{self, context, frame, percpu, vector};
use crate::mailbox::{Counter, crash, header, state};

/// Faults that are retried between two ticks before the guest gives up. A fault that a test injected goes away
/// when the instruction is tried again; one that stays is a crash.
const MAX_RETRIES: i32 = 1000;

/// The code of one gate: an error code of 0 where the CPU pushes none, the vector, and on to the common part.
pub fn gate(number: u64, common: u64, ist: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    if !matches!(number, 8 | 10..=14 | 17 | 21 | 29 | 30) {
        a.push(0)?;
    }
    a.push(number as i32)?;
    a.jmp(if matches!(number, 1 | 2 | 8) { ist } else { common })?;
    a.assemble(layout::STUBS + number * layout::STUB_SIZE)
}

/// The common part of all gates, and the handlers.
pub fn emit(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    common(a, l)?;
    restore(a, l)?;
    on_stacks(a, l)?;
    timer(a, l)?;
    interrupts(a, l)?;
    page_fault(a, l)?;
    exceptions(a, l)?;
    fault(a, l)?;
    give_up(a, l)
}

fn common(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    let mut in_kernel = a.create_label();
    place(a, &mut l.common)?;
    push_all(a)?;
    a.mov(rbp, rsp)?;
    a.cld()?;
    load_own(a)?;
    test_user(a)?;
    a.je(in_kernel)?;
    a.swapgs()?;
    place(a, &mut in_kernel)?;
    a.mov(eax, dword_ptr(rbp + frame::VECTOR))?;
    on(a, vector::TIMER as u32, l.timer)?;
    on(a, 14, l.page_fault)?;
    on(a, 3, l.breakpoint)?;
    on(a, 6, l.invalid_opcode)?;
    on(a, 13, l.general_protection)?;
    on(a, vector::IPI as u32, l.ipi)?;
    on(a, vector::SOFT as u32, l.soft)?;
    on(a, vector::SPURIOUS as u32, l.spurious)?;
    a.cmp(eax, 32)?;
    a.jae(l.other_interrupt)?;
    a.jmp(l.other_exception)
}

/// `restore`: continues the context whose saved registers RSP points at.
fn restore(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    let (mut by_iret, mut by_sysret) = (a.create_label(), a.create_label());
    place(a, &mut l.restore)?;
    a.test(byte_ptr(rsp + frame::CS), 3)?;
    a.je(by_iret)?;
    a.cmp(dword_ptr(rsp + frame::VECTOR), frame::SYSCALL)?;
    a.je(by_sysret)?;
    a.swapgs()?;
    place(a, &mut by_iret)?;
    pop_all(a)?;
    a.add(rsp, 16)?;
    a.iretq()?;

    place(a, &mut by_sysret)?;
    pop_all(a)?;
    a.mov(rcx, qword_ptr(rsp + (frame::RIP - frame::VECTOR)))?;
    a.mov(r11, qword_ptr(rsp + (frame::RFLAGS - frame::VECTOR)))?;
    a.mov(rsp, qword_ptr(rsp + (frame::RSP - frame::VECTOR)))?;
    a.swapgs()?;
    a.sysretq()
}

/// The vectors with a stack of their own: #DB, NMI and double fault. They leave GS alone and switch nothing.
fn on_stacks(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    let (mut nmi, mut back) = (a.create_label(), a.create_label());
    place(a, &mut l.on_stack)?;
    push_all(a)?;
    a.mov(rbp, rsp)?;
    a.cld()?;
    load_own(a)?;
    a.mov(eax, dword_ptr(rbp + frame::VECTOR))?;
    on(a, 2, nmi)?;
    on(a, 8, l.give_up)?;
    count(a, Counter::DebugExceptions)?;
    // DR6 is sticky. RF lets an execution breakpoint's instruction run.
    a.mov(eax, 0xffff_0ff0_u32)?;
    a.mov(dr6, rax)?;
    count(a, Counter::DrWrites)?;
    a.or(qword_ptr(rbp + frame::RFLAGS), 0x1_0000)?;
    a.jmp(back)?;
    place(a, &mut nmi)?;
    count(a, Counter::Nmis)?;
    place(a, &mut back)?;
    pop_all(a)?;
    a.add(rsp, 16)?;
    a.iretq()
}

fn timer(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    place(a, &mut l.timer)?;
    count(a, Counter::Ticks)?;
    write_apic(a, layout::apic::EOI, 0)?;
    a.mov(own(percpu::RETRIES), 0)?;
    a.cmp(own(percpu::BUSY), 0)?;
    a.jne(l.restore)?;
    a.cmp(at(crate::mailbox::MAILBOX + header::BACKGROUND), 0)?;
    a.je(l.restore)?;
    a.or(own(percpu::RUNNABLE), 6)?;
    a.jmp(l.schedule)
}

fn interrupts(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    place(a, &mut l.ipi)?;
    count(a, Counter::Ipis)?;
    write_apic(a, layout::apic::EOI, 0)?;
    a.jmp(l.restore)?;
    place(a, &mut l.soft)?;
    count(a, Counter::SoftInterrupts)?;
    a.jmp(l.restore)?;
    place(a, &mut l.spurious)?;
    count(a, Counter::Spurious)?;
    a.jmp(l.restore)?;
    place(a, &mut l.other_interrupt)?;
    count(a, Counter::OtherInterrupts)?;
    write_apic(a, layout::apic::EOI, 0)?;
    a.jmp(l.restore)
}

/// A process that touches one of its lazy pages gets it. All else is a fault.
fn page_fault(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    place(a, &mut l.page_fault)?;
    count(a, Counter::PageFaults)?;
    test_user(a)?;
    a.je(l.fault)?;
    a.test(byte_ptr(rbp + frame::ERROR), 1)?;
    a.jne(l.fault)?;
    a.mov(rax, cr2)?;
    a.mov(rcx, layout::USER_LAZY)?;
    a.mov(rdx, rax)?;
    a.sub(rdx, rcx)?;
    a.cmp(rdx, (layout::LAZY_PAGES << 12) as i32)?;
    a.jae(l.fault)?;
    a.call(l.own_inbox)?;
    a.call(l.map_lazy)?;
    count(a, Counter::LazyPages)?;
    a.jmp(l.restore)
}

fn exceptions(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    place(a, &mut l.breakpoint)?;
    count(a, Counter::Breakpoints)?;
    a.jmp(l.restore)?;
    place(a, &mut l.invalid_opcode)?;
    count(a, Counter::InvalidOpcodes)?;
    a.jmp(l.fault)?;
    place(a, &mut l.general_protection)?;
    count(a, Counter::GeneralProtections)?;
    a.jmp(l.fault)?;
    place(a, &mut l.other_exception)?;
    count(a, Counter::OtherExceptions)?;
    a.jmp(l.fault)
}

/// A fault: to the fixup of who expects one, else once more.
fn fault(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    let (mut in_kernel, mut found, mut retry) = (a.create_label(), a.create_label(), a.create_label());
    place(a, &mut l.fault)?;
    test_user(a)?;
    a.je(in_kernel)?;
    a.call(l.own_inbox)?;
    a.add(rdi, layout::inbox::FIXUP)?;
    a.jmp(found)?;
    place(a, &mut in_kernel)?;
    a.cmp(own(percpu::CURRENT), 0)?;
    a.jne(retry)?;
    a.lea(rdi, own(percpu::FIXUP))?;
    place(a, &mut found)?;
    // RDI: fixup, stack pointer, vector, error code, CR2, RIP.
    a.mov(rax, qword_ptr(rdi))?;
    a.test(rax, rax)?;
    a.je(retry)?;
    a.mov(qword_ptr(rdi), 0)?;
    a.mov(rcx, qword_ptr(rbp + frame::RIP))?;
    a.mov(qword_ptr(rdi + 0x28), rcx)?;
    a.mov(qword_ptr(rbp + frame::RIP), rax)?;
    a.mov(rax, qword_ptr(rdi + 8))?;
    a.mov(qword_ptr(rbp + frame::RSP), rax)?;
    a.mov(rax, qword_ptr(rbp + frame::VECTOR))?;
    a.mov(qword_ptr(rdi + 0x10), rax)?;
    a.mov(rax, qword_ptr(rbp + frame::ERROR))?;
    a.mov(qword_ptr(rdi + 0x18), rax)?;
    a.mov(rax, cr2)?;
    a.mov(qword_ptr(rdi + 0x20), rax)?;
    a.jmp(l.restore)?;
    place(a, &mut retry)?;
    a.inc(own(percpu::RETRIES))?;
    a.cmp(own(percpu::RETRIES), MAX_RETRIES)?;
    a.jb(l.restore)?;
    a.jmp(l.give_up)
}

/// Records the exception whose saved registers RBP points at, and stops this vCPU.
fn give_up(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    let mut top = a.create_label();
    place(a, &mut l.give_up)?;
    let mailbox = crate::mailbox::MAILBOX;
    a.mov(rax, own(percpu::NUMBER))?;
    a.mov(at(mailbox + crash::VCPU), rax)?;
    for (offset, to) in
        [(frame::VECTOR, crash::VECTOR), (frame::ERROR, crash::ERROR), (frame::RIP, crash::RIP)]
    {
        a.mov(rax, qword_ptr(rbp + offset))?;
        a.mov(at(mailbox + to), rax)?;
    }
    a.mov(rax, cr2)?;
    a.mov(at(mailbox + crash::CR2), rax)?;
    a.mov(at(mailbox + header::STATE), state::CRASHED as i32)?;
    place(a, &mut top)?;
    a.cli()?;
    a.hlt()?;
    a.jmp(top)
}

/// `own_inbox`: RDI becomes the inbox of the running process.
pub fn own_inbox(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    place(a, &mut l.own_inbox)?;
    a.mov(rdi, own(percpu::CURRENT))?;
    a.shl(rdi, percpu::CONTEXT_SIZE.trailing_zeros())?;
    a.mov(rdi, qword_ptr(r14 + rdi + (percpu::CONTEXTS + context::INBOX)))?;
    a.ret()
}
