//! System calls: the entry, and what each does.

use iced_x86::code_asm::*;

use super::kit::{Emit, at, count, load_own, on, own, place, push_all};
use super::labels::Labels;
use crate::layout::{frame, percpu, selector, syscall};
use crate::mailbox::{Counter, MAILBOX, header};

/// The entry that LSTAR points at, and the handlers.
pub fn emit(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    entry(a, l)?;
    handlers(a, l)
}

/// Builds the same saved registers as a gate, so that a process can be continued by `restore` either way.
fn entry(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    place(a, &mut l.syscall)?;
    a.swapgs()?;
    a.mov(qword_ptr(percpu::USER_RSP).gs(), rsp)?;
    a.mov(rsp, qword_ptr(percpu::KERNEL_RSP).gs())?;
    a.push(selector::USER_DATA as i32)?;
    a.push(qword_ptr(percpu::USER_RSP).gs())?;
    a.push(r11)?;
    a.push(selector::USER_CODE as i32)?;
    a.push(rcx)?;
    a.push(0)?;
    a.push(frame::SYSCALL)?;
    push_all(a)?;
    a.mov(rbp, rsp)?;
    load_own(a)?;
    count(a, Counter::Syscalls)?;
    on(a, syscall::COUNT, l.restore)?;
    on(a, syscall::YIELD, l.sys_yield)?;
    on(a, syscall::UNMAP, l.sys_unmap)?;
    on(a, syscall::DONE, l.sys_done)?;
    on(a, syscall::ANSWERED, l.sys_answered)?;
    on(a, syscall::RIGHT, l.sys_right)?;
    on(a, syscall::WRONG, l.sys_wrong)?;
    a.mov(qword_ptr(rbp + frame::RAX), -1)?;
    a.jmp(l.restore)
}

fn handlers(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    place(a, &mut l.sys_yield)?;
    a.call(l.own_inbox)?;
    a.call(l.unmap_lazy)?;
    // The switch writes CR3, which drops the unmapped pages from the TLB.
    place(a, &mut l.sys_done)?;
    a.mov(rcx, own(percpu::CURRENT))?;
    a.btr(own(percpu::RUNNABLE), rcx)?;
    a.jmp(l.schedule)?;

    place(a, &mut l.sys_unmap)?;
    a.call(l.own_inbox)?;
    a.call(l.unmap_lazy)?;
    for page in 0..crate::layout::LAZY_PAGES {
        a.mov(rax, crate::layout::USER_LAZY + (page << 12))?;
        a.invlpg(byte_ptr(rax))?;
        count(a, Counter::Invlpgs)?;
    }
    a.jmp(l.restore)?;

    place(a, &mut l.sys_answered)?;
    a.lock().inc(at(MAILBOX + header::GREETING_SEEN))?;
    a.jmp(l.restore)?;
    place(a, &mut l.sys_right)?;
    count(a, Counter::SelfModified)?;
    a.jmp(l.restore)?;
    place(a, &mut l.sys_wrong)?;
    count(a, Counter::SelfModifiedWrong)?;
    a.jmp(l.restore)
}
