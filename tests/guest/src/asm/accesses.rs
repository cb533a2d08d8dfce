//! Orders that touch memory and ports in ring 0.

use iced_x86::code_asm::*;

use super::kit::{Emit, arg, count, place, repeat, result};
use super::labels::Labels;
use super::orders::site;
use crate::mailbox::{Counter, Site, slot};

/// The code of an access: it moves between memory (or the port in DX) and RAX (or its part).
type Access = fn(&mut CodeAssembler) -> Emit;

/// One loop for each size, chosen by EAX. R8 has the address, R9 the value; RAX starts with it.
fn each_size(
    a: &mut CodeAssembler,
    l: &mut Labels,
    sizes: &[(u32, Option<Site>, Access)],
    after: fn(&mut CodeAssembler) -> Emit,
) -> Emit {
    for (size, at, access) in sizes {
        let mut next = a.create_label();
        a.cmp(eax, *size)?;
        a.jne(next)?;
        a.mov(rax, r9)?;
        repeat(a, |a| {
            if let Some(which) = at {
                site(a, l, *which)?;
            }
            access(a)?;
            after(a)
        })?;
        a.jmp(l.order_done)?;
        place(a, &mut next)?;
    }
    a.jmp(l.order_unknown)
}

/// The low half of argument `n` as the size.
fn size_from(a: &mut CodeAssembler, n: i32) -> Emit {
    a.mov(eax, dword_ptr(rbx + slot::ARGS as i32 + 8 * n))
}

/// `Op::Out`.
pub fn out(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    const SIZES: &[(u32, Option<Site>, Access)] = &[
        (1, Some(Site::Out1), |a| a.out(dx, al)),
        (2, Some(Site::Out2), |a| a.out(dx, ax)),
        (4, Some(Site::Out4), |a| a.out(dx, eax)),
    ];
    a.mov(rdx, arg(1))?;
    a.mov(r9, arg(2))?;
    size_from(a, 3)?;
    each_size(a, l, SIZES, |a| count(a, Counter::Outs))
}

/// `Op::In`.
pub fn input(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    const SIZES: &[(u32, Option<Site>, Access)] = &[
        (1, Some(Site::In1), |a| a.in_(al, dx)),
        (2, Some(Site::In2), |a| a.in_(ax, dx)),
        (4, Some(Site::In4), |a| a.in_(eax, dx)),
    ];
    a.mov(rdx, arg(1))?;
    a.xor(r9d, r9d)?;
    size_from(a, 2)?;
    each_size(a, l, SIZES, |a| {
        count(a, Counter::Ins)?;
        a.mov(result(0), rax)
    })
}

/// `Op::Read`.
pub fn read(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    const SIZES: &[(u32, Option<Site>, Access)] = &[
        (1, None, |a| a.mov(al, byte_ptr(r8))),
        (2, None, |a| a.mov(ax, word_ptr(r8))),
        (4, None, |a| a.mov(eax, dword_ptr(r8))),
        (8, Some(Site::Read8), |a| a.mov(rax, qword_ptr(r8))),
    ];
    a.mov(r8, arg(1))?;
    a.xor(r9d, r9d)?;
    size_from(a, 2)?;
    each_size(a, l, SIZES, |a| a.mov(result(0), rax))
}

/// `Op::Write`.
pub fn write(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    const SIZES: &[(u32, Option<Site>, Access)] = &[
        (1, None, |a| a.mov(byte_ptr(r8), r9b)),
        (2, None, |a| a.mov(word_ptr(r8), r9w)),
        (4, None, |a| a.mov(dword_ptr(r8), r9d)),
        (8, Some(Site::Write8), |a| a.mov(qword_ptr(r8), r9)),
    ];
    a.mov(r8, arg(1))?;
    a.mov(r9, arg(2))?;
    size_from(a, 3)?;
    each_size(a, l, SIZES, |_| Ok(()))
}

/// `Op::Exec`. The code may change what the System V ABI lets a function change.
pub fn exec(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    repeat(a, |a| {
        a.mov(rax, arg(1))?;
        site(a, l, Site::Exec)?;
        a.call(rax)?;
        a.mov(result(0), rax)
    })
}

/// `Op::Fill`.
pub fn fill(a: &mut CodeAssembler, _: &mut Labels) -> Emit {
    repeat(a, |a| {
        a.mov(rdi, arg(1))?;
        a.mov(rax, arg(2))?;
        a.mov(rcx, arg(3))?;
        a.rep().stosb()
    })
}

/// `Op::Copy`.
pub fn copy(a: &mut CodeAssembler, _: &mut Labels) -> Emit {
    repeat(a, |a| {
        a.mov(rdi, arg(1))?;
        a.mov(rsi, arg(2))?;
        a.mov(rcx, arg(3))?;
        copy_bytes(a)
    })
}

/// Copies RCX bytes from RSI to RDI, 16 at a time by SSE: movaps where RDI is aligned, else movups.
/// Changes RCX, RSI, RDI and XMM0.
pub fn copy_bytes(a: &mut CodeAssembler) -> Emit {
    let (mut top, mut rest) = (a.create_label(), a.create_label());
    let (mut unaligned, mut stored) = (a.create_label(), a.create_label());
    place(a, &mut top)?;
    a.cmp(rcx, 16)?;
    a.jb(rest)?;
    a.movups(xmm0, xmmword_ptr(rsi))?;
    a.test(edi, 15)?;
    a.jne(unaligned)?;
    a.movaps(xmmword_ptr(rdi), xmm0)?;
    a.jmp(stored)?;
    place(a, &mut unaligned)?;
    a.movups(xmmword_ptr(rdi), xmm0)?;
    place(a, &mut stored)?;
    a.add(rsi, 16)?;
    a.add(rdi, 16)?;
    a.sub(rcx, 16)?;
    a.jmp(top)?;
    place(a, &mut rest)?;
    a.rep().movsb()
}
