//! The contexts of a vCPU: the kernel thread and its two processes, and the switch between them.

use iced_x86::code_asm::*;

use super::kit::{Emit, count, own, place, push_all, store};
use super::labels::Labels;
use crate::layout::{self, context, frame, percpu, process, selector, vcpu};
use crate::mailbox::{Counter, MAILBOX, PROCESS_CR3, PROCESSES, Site};

const FRAME_SIZE: u64 = 22 * 8;

/// The offset of a context's word in the vCPU's area.
fn of(number: u64, word: i32) -> i32 {
    percpu::CONTEXTS + number as i32 * percpu::CONTEXT_SIZE + word
}

/// The switch.
pub fn emit(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    schedule(a, l)?;
    switch_away(a, l)
}

/// `schedule`: saves the context whose saved registers RBP points at, and continues the next: the processes that have
/// work in turn, else the kernel thread. Interrupts are off.
fn schedule(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    let (mut first, mut found) = (a.create_label(), a.create_label());
    place(a, &mut l.schedule)?;
    a.mov(rax, own(percpu::CURRENT))?;
    a.mov(rdx, own(percpu::RUNNABLE))?;
    a.mov(ecx, 1)?;
    a.cmp(rax, 1)?;
    a.jne(first)?;
    a.mov(ecx, 2)?;
    place(a, &mut first)?;
    a.bt(rdx, rcx)?;
    a.jb(found)?;
    a.xor(ecx, 3)?;
    a.bt(rdx, rcx)?;
    a.jb(found)?;
    a.xor(ecx, ecx)?;
    place(a, &mut found)?;
    a.cmp(rcx, rax)?;
    a.je(l.restore)?;

    a.mov(own(percpu::CURRENT), rcx)?;
    a.shl(eax, percpu::CONTEXT_SIZE.trailing_zeros())?;
    a.mov(qword_ptr(r14 + rax + of(0, context::RSP)), rbp)?;
    a.shl(ecx, percpu::CONTEXT_SIZE.trailing_zeros())?;
    a.lea(rbx, qword_ptr(r14 + rcx + percpu::CONTEXTS))?;
    a.mov(rax, qword_ptr(rbx + context::RSP0))?;
    a.mov(own(percpu::KERNEL_RSP), rax)?;
    a.mov(own(vcpu::TSS as i32 + 4), rax)?;
    a.mov(rax, qword_ptr(rbx + context::CR3))?;
    place(a, &mut l.sites[Site::SwitchCr3 as usize])?;
    a.mov(cr3, rax)?;
    count(a, Counter::Cr3Writes)?;
    count(a, Counter::Switches)?;
    a.mov(rsp, qword_ptr(rbx + context::RSP))?;
    a.jmp(l.restore)
}

/// `switch_away`: the kernel thread lets the processes run, and returns when it is continued.
/// Changes RAX, RCX and the flags.
fn switch_away(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    place(a, &mut l.switch_away)?;
    a.pop(rcx)?;
    a.mov(rax, rsp)?;
    a.push(selector::KERNEL_DATA as i32)?;
    a.push(rax)?;
    a.pushfq()?;
    a.push(selector::KERNEL_CODE as i32)?;
    a.push(rcx)?;
    a.push(0)?;
    a.push(0)?;
    push_all(a)?;
    a.cli()?;
    a.mov(rbp, rsp)?;
    a.jmp(l.schedule)
}

/// Sets up the contexts of the vCPU whose area R14 points at. Part of its start; changes most registers.
pub fn set_up(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    store(a, own(of(0, context::CR3)), layout::KERNEL_PML4)?;
    a.lea(rax, own(vcpu::STACK as i32))?;
    a.mov(own(of(0, context::RSP0)), rax)?;
    for number in 0..PROCESSES {
        a.mov(r13, own(percpu::NUMBER))?;
        a.lea(r13, qword_ptr(r13 * 2 + number as i32))?;
        a.mov(r12, r13)?;
        a.shl(r12, layout::AREA.trailing_zeros())?;
        a.add(r12, layout::PROCESS_AREAS as i32)?;
        a.call(l.process_tables)?;
        a.mov(qword_ptr(r13 * 8 + (MAILBOX + PROCESS_CR3) as i32), r12)?;
        context_of(a, number)?;
    }
    Ok(())
}

/// The first saved registers of process `number`, whose area R12 points at, and its context.
fn context_of(a: &mut CodeAssembler, number: u64) -> Emit {
    let top = (vcpu::PROCESS_STACK + 0x1000 * number) as i32;
    let saved = top - FRAME_SIZE as i32;
    let first = [
        (frame::RIP, layout::USER_TEXT),
        (frame::CS, u64::from(selector::USER_CODE)),
        (frame::RFLAGS, 0x202),
        (frame::RSP, layout::USER_STACK + 0x1000),
        (frame::RSP + 8, u64::from(selector::USER_DATA)),
    ];
    for (word, value) in first {
        store(a, own(saved + word), value)?;
    }
    a.lea(rax, own(saved))?;
    a.mov(own(of(number + 1, context::RSP)), rax)?;
    a.lea(rax, own(top))?;
    a.mov(own(of(number + 1, context::RSP0)), rax)?;
    a.mov(own(of(number + 1, context::CR3)), r12)?;
    a.lea(rax, qword_ptr(r12 + process::INBOX))?;
    a.mov(own(of(number + 1, context::INBOX)), rax)
}
