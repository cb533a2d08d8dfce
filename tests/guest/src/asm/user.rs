//! The program of every process, in ring 3. Assembled at its own gva.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::greeting;
use super::kit::{Emit, place, repeat};
use crate::layout::{self, inbox, syscall};
use crate::mailbox::Op;

/// The labels of the program.
pub struct User {
    pub(super) round: CodeLabel,
    order: CodeLabel,
    order_end: CodeLabel,
    self_modify: CodeLabel,
    pub(super) greeting: CodeLabel,
}

/// Assembles the program. RBX is the inbox throughout.
pub fn assemble() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut u = User {
        round: a.create_label(),
        order: a.create_label(),
        order_end: a.create_label(),
        self_modify: a.create_label(),
        greeting: a.create_label(),
    };
    round(&mut a, &mut u)?;
    self_modify(&mut a, &mut u)?;
    greeting::emit(&mut a, &mut u)?;
    order(&mut a, &mut u)?;
    a.assemble(layout::USER_TEXT)
}

/// A word of the inbox.
pub fn inbox_word(offset: i32) -> AsmMemoryOperand {
    qword_ptr(rbx + offset)
}

fn arg(n: i32) -> AsmMemoryOperand {
    inbox_word(inbox::ARGS + 8 * n)
}

/// A system call. Changes RAX, RCX and R11.
pub fn call_kernel(a: &mut CodeAssembler, number: u32) -> Emit {
    a.mov(eax, number)?;
    a.syscall()
}

/// One round a tick: a system call, a lazy page, written code, a breakpoint, the greeting; then the vCPU is given away.
fn round(a: &mut CodeAssembler, u: &mut User) -> Emit {
    let mut skip = a.create_label();
    a.mov(rbx, layout::USER_INBOX)?;
    place(a, &mut u.round)?;
    a.cmp(inbox_word(inbox::OP), 0)?;
    a.jne(u.order)?;
    a.inc(inbox_word(inbox::ROUND))?;
    call_kernel(a, syscall::COUNT)?;
    touch_lazy(a)?;
    a.call(u.self_modify)?;
    a.int3()?;
    a.cmp(inbox_word(inbox::NUMBER), 0)?;
    a.jne(skip)?;
    a.call(u.greeting)?;
    place(a, &mut skip)?;
    call_kernel(a, syscall::YIELD)?;
    a.jmp(u.round)
}

/// Adds one to the first word of one of the lazy pages.
fn touch_lazy(a: &mut CodeAssembler) -> Emit {
    a.mov(rax, inbox_word(inbox::ROUND))?;
    a.and(eax, (layout::LAZY_PAGES - 1) as i32)?;
    a.shl(eax, 12)?;
    a.mov(rcx, layout::USER_LAZY)?;
    a.inc(qword_ptr(rcx + rax))
}

/// Writes `mov eax, ROUND; ret`, calls it, and tells the kernel whether the value came back.
fn self_modify(a: &mut CodeAssembler, u: &mut User) -> Emit {
    let mut wrong = a.create_label();
    place(a, &mut u.self_modify)?;
    a.mov(rdi, layout::USER_SELF)?;
    a.mov(r13, inbox_word(inbox::ROUND))?;
    a.mov(byte_ptr(rdi), 0xb8)?;
    a.mov(dword_ptr(rdi + 1), r13d)?;
    a.mov(byte_ptr(rdi + 5), 0xc3)?;
    a.call(rdi)?;
    a.cmp(eax, r13d)?;
    a.jne(wrong)?;
    call_kernel(a, syscall::RIGHT)?;
    a.ret()?;
    place(a, &mut wrong)?;
    call_kernel(a, syscall::WRONG)?;
    a.ret()
}

type Body = fn(&mut CodeAssembler, &mut User) -> Emit;

const ORDERS: &[(Op, Body)] = &[
    (Op::UserRead, read),
    (Op::UserWrite, write),
    (Op::UserExec, exec),
    (Op::UserInt3, |a, _| repeat(a, |a| a.int3())),
    (Op::UserSyscall, |a, _| repeat(a, |a| call_kernel(a, syscall::COUNT))),
    (Op::UserLazy, lazy),
    (Op::UserSelfModify, |a, u| {
        repeat(a, |a| {
            a.inc(inbox_word(inbox::ROUND))?;
            a.call(u.self_modify)
        })
    }),
    (Op::UserSpin, |a, _| repeat(a, |_| Ok(()))),
];

/// An order that the kernel put into the inbox. A fault ends it too, by the fixup.
fn order(a: &mut CodeAssembler, u: &mut User) -> Emit {
    place(a, &mut u.order)?;
    a.lea(rax, qword_ptr(u.order_end))?;
    a.mov(inbox_word(inbox::FIXUP_RSP), rsp)?;
    a.mov(inbox_word(inbox::FIXUP), rax)?;
    a.mov(r12, arg(0))?;
    for (op, body) in ORDERS {
        let mut next = a.create_label();
        a.cmp(inbox_word(inbox::OP), *op as i32)?;
        a.jne(next)?;
        body(a, u)?;
        a.jmp(u.order_end)?;
        place(a, &mut next)?;
    }
    place(a, &mut u.order_end)?;
    a.mov(rbx, layout::USER_INBOX)?;
    a.mov(inbox_word(inbox::FIXUP), 0)?;
    a.mov(inbox_word(inbox::OP), 0)?;
    call_kernel(a, syscall::DONE)?;
    a.jmp(u.round)
}

/// One loop for each size. R8 has the address, R9 the value. Another size counts as 8.
fn each_size(
    a: &mut CodeAssembler,
    u: &mut User,
    size: i32,
    bodies: [fn(&mut CodeAssembler) -> Emit; 4],
) -> Emit {
    a.mov(r8, arg(1))?;
    a.mov(r9, arg(2))?;
    a.xor(eax, eax)?;
    for (bytes, body) in [1, 2, 4].into_iter().zip(bodies) {
        let mut next = a.create_label();
        a.cmp(arg(size), bytes)?;
        a.jne(next)?;
        repeat(a, body)?;
        a.mov(inbox_word(inbox::RESULT), rax)?;
        a.jmp(u.order_end)?;
        place(a, &mut next)?;
    }
    repeat(a, bodies[3])?;
    a.mov(inbox_word(inbox::RESULT), rax)
}

fn read(a: &mut CodeAssembler, u: &mut User) -> Emit {
    each_size(
        a,
        u,
        2,
        [
            |a| a.mov(al, byte_ptr(r8)),
            |a| a.mov(ax, word_ptr(r8)),
            |a| a.mov(eax, dword_ptr(r8)),
            |a| a.mov(rax, qword_ptr(r8)),
        ],
    )
}

fn write(a: &mut CodeAssembler, u: &mut User) -> Emit {
    each_size(
        a,
        u,
        3,
        [
            |a| a.mov(byte_ptr(r8), r9b),
            |a| a.mov(word_ptr(r8), r9w),
            |a| a.mov(dword_ptr(r8), r9d),
            |a| a.mov(qword_ptr(r8), r9),
        ],
    )
}

fn exec(a: &mut CodeAssembler, _: &mut User) -> Emit {
    repeat(a, |a| {
        a.mov(rax, arg(1))?;
        a.call(rax)?;
        a.mov(inbox_word(inbox::RESULT), rax)
    })
}

fn lazy(a: &mut CodeAssembler, _: &mut User) -> Emit {
    repeat(a, |a| {
        call_kernel(a, syscall::UNMAP)?;
        a.inc(inbox_word(inbox::ROUND))?;
        touch_lazy(a)
    })
}
