//! Orders of the mailbox: fetched by the idle loop, performed exactly as asked.

use iced_x86::code_asm::*;

use super::kit::{Emit, arg, count, load_own, own, place, repeat, result, slot_word, store};
use super::labels::Labels;
use crate::layout::{context, inbox, percpu};
use crate::mailbox::{Counter, Op, Site, slot, status};

type Order = fn(&mut CodeAssembler, &mut Labels) -> Emit;

/// The orders of ring 0. Each body runs with RBX at the slot, and R12 the first argument. A body that never returns
/// or repeats by itself is in `super::waits`.
const ORDERS: &[(Op, Order)] = &[
    (Op::Nop, |_, _| Ok(())),
    (Op::WriteCr3, write_cr3),
    (Op::WriteCr0, |a, l| flip(a, l, cr0, Site::WriteCr0, [Counter::Cr0Reads, Counter::Cr0Writes])),
    (Op::WriteCr4, |a, l| flip(a, l, cr4, Site::WriteCr4, [Counter::Cr4Reads, Counter::Cr4Writes])),
    (Op::WriteCr8, write_cr8),
    (Op::ReadCr8, read_cr8),
    (Op::WriteMsr, write_msr),
    (Op::ReadMsr, read_msr),
    (Op::WriteDr, super::system::write_dr),
    (Op::ReadDr, super::system::read_dr),
    (Op::Int3, int3),
    (Op::SoftInterrupt, soft_interrupt),
    (Op::Cpuid, cpuid),
    (Op::Out, super::accesses::out),
    (Op::In, super::accesses::input),
    (Op::Read, super::accesses::read),
    (Op::Write, super::accesses::write),
    (Op::Exec, super::accesses::exec),
    (Op::Fill, super::accesses::fill),
    (Op::Copy, super::accesses::copy),
    (Op::Invlpg, invlpg),
    (Op::Spin, spin),
    (Op::Background, super::waits::background),
    (Op::Hlt, super::waits::hlt),
    (Op::Stop, super::waits::stop),
    (Op::Ipi, super::waits::ipi),
    (Op::ReadCr, super::system::read_cr),
    (Op::Clts, super::system::clts),
    (Op::Lmsw, super::system::lmsw),
    (Op::WriteXcr0, super::system::write_xcr0),
    (Op::ReadXcr0, super::system::read_xcr0),
    (Op::LoadTable, super::system::load_table),
    (Op::StoreTable, super::system::store_table),
    (Op::Vmcall, super::system::vmcall),
    (Op::Nmi, super::waits::nmi),
    (Op::ClosedSpin, closed_spin),
];

/// `perform`: does the order in the slot that RBX points at, and acknowledges it.
pub fn emit(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    place(a, &mut l.perform)?;
    a.mov(rax, slot_word(slot::SEQ))?;
    a.mov(slot_word(slot::BEGUN), rax)?;
    a.xor(eax, eax)?;
    a.mov(slot_word(slot::STATUS), rax)?;
    for n in 0..4 {
        a.mov(result(n), rax)?;
    }
    a.lea(rax, qword_ptr(l.order_fault))?;
    a.mov(own(percpu::FIXUP_RSP), rsp)?;
    a.mov(own(percpu::FIXUP), rax)?;
    a.mov(r12, arg(0))?;
    a.mov(rax, slot_word(slot::OP))?;
    dispatch(a, l)?;
    unknown(a, l)?;
    faulted(a, l)?;
    done(a, l)
}

fn dispatch(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    for (op, body) in ORDERS {
        let mut next = a.create_label();
        a.cmp(rax, *op as i32)?;
        a.jne(next)?;
        body(a, l)?;
        a.jmp(l.order_done)?;
        place(a, &mut next)?;
    }
    a.cmp(rax, Op::UserRead as i32)?;
    a.jb(l.order_unknown)?;
    a.cmp(rax, Op::UserSpin as i32)?;
    a.ja(l.order_unknown)?;
    in_process(a, l)
}

/// Hands the order to the first process, and waits until that has done it.
fn in_process(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    let inbox_of_first = own(percpu::CONTEXTS + percpu::CONTEXT_SIZE + context::INBOX);
    a.mov(rdi, inbox_of_first)?;
    a.mov(qword_ptr(rdi + inbox::OP), rax)?;
    for n in 0..4 {
        a.mov(rax, arg(n))?;
        a.mov(qword_ptr(rdi + inbox::ARGS + 8 * n as i32), rax)?;
    }
    a.xor(eax, eax)?;
    a.mov(qword_ptr(rdi + inbox::RESULT), rax)?;
    for n in 0..4 {
        a.mov(qword_ptr(rdi + inbox::FAULT + 8 * n), rax)?;
    }
    a.or(own(percpu::RUNNABLE), 2)?;
    a.call(l.switch_away)?;
    a.mov(rdi, inbox_of_first)?;
    a.lea(rsi, qword_ptr(rdi + inbox::FAULT))?;
    // Vector 0 is #DE, which no order raises.
    a.cmp(qword_ptr(rsi), 0)?;
    a.jne(l.order_copy_fault)?;
    a.mov(rax, qword_ptr(rdi + inbox::RESULT))?;
    a.mov(result(0), rax)?;
    a.jmp(l.order_done)
}

/// The fault handler comes here with the stack pointer of `perform`; nothing else can be relied on.
fn faulted(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    place(a, &mut l.order_fault)?;
    // The fault may have met interrupts off.
    a.sti()?;
    load_own(a)?;
    a.mov(rbx, own(percpu::SLOT))?;
    a.lea(rsi, own(percpu::FAULT))?;
    place(a, &mut l.order_copy_fault)?;
    for n in 0..4 {
        a.mov(rax, qword_ptr(rsi + 8 * n as i32))?;
        a.mov(result(n), rax)?;
    }
    store(a, slot_word(slot::STATUS), status::FAULTED)?;
    a.jmp(l.order_done)
}

fn unknown(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    place(a, &mut l.order_unknown)?;
    store(a, slot_word(slot::STATUS), status::UNKNOWN)?;
    a.jmp(l.order_done)
}

fn done(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    place(a, &mut l.order_done)?;
    a.mov(own(percpu::FIXUP), 0)?;
    count(a, Counter::Orders)?;
    a.mov(rax, slot_word(slot::BEGUN))?;
    a.mov(slot_word(slot::ACK), rax)?;
    a.mov(own(percpu::BUSY), 0)?;
    a.ret()
}

/// Marks the next instruction as a site.
pub fn site(a: &mut CodeAssembler, l: &mut Labels, which: Site) -> Emit {
    place(a, &mut l.sites[which as usize])
}

fn write_cr3(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    let mut given = a.create_label();
    // R8 and R9 are swapped each time: the same value twice, or the two processes in turn.
    a.mov(r8, arg(1))?;
    a.mov(r9, r8)?;
    a.test(r8, r8)?;
    a.jne(given)?;
    let cr3_of = |n| own(percpu::CONTEXTS + n * percpu::CONTEXT_SIZE + context::CR3);
    a.mov(r8, cr3_of(1))?;
    a.mov(r9, cr3_of(2))?;
    place(a, &mut given)?;
    repeat(a, |a| {
        site(a, l, Site::WriteCr3)?;
        a.mov(cr3, r8)?;
        count(a, Counter::Cr3Writes)?;
        a.mov(result(0), r8)?;
        a.xchg(r8, r9)
    })
}

fn flip(
    a: &mut CodeAssembler,
    l: &mut Labels,
    register: AsmRegisterCr,
    at: Site,
    [reads, writes]: [Counter; 2],
) -> Emit {
    repeat(a, |a| {
        a.mov(rax, register)?;
        count(a, reads)?;
        a.xor(rax, arg(1))?;
        site(a, l, at)?;
        a.mov(register, rax)?;
        count(a, writes)?;
        a.mov(result(0), rax)
    })
}

fn write_cr8(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    a.mov(r8, arg(1))?;
    repeat(a, |a| {
        site(a, l, Site::WriteCr8)?;
        a.mov(cr8, r8)?;
        count(a, Counter::Cr8Writes)?;
        a.mov(own(percpu::CR8), r8)
    })
}

fn read_cr8(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    repeat(a, |a| {
        site(a, l, Site::ReadCr8)?;
        a.mov(rax, cr8)?;
        count(a, Counter::Cr8Reads)?;
        a.mov(result(0), rax)
    })
}

fn write_msr(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    a.mov(rcx, arg(1))?;
    a.mov(rax, arg(2))?;
    a.mov(rdx, rax)?;
    a.shr(rdx, 32)?;
    repeat(a, |a| {
        site(a, l, Site::WriteMsr)?;
        a.wrmsr()?;
        count(a, Counter::MsrWrites)
    })
}

fn read_msr(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    a.mov(rcx, arg(1))?;
    repeat(a, |a| {
        site(a, l, Site::ReadMsr)?;
        a.rdmsr()?;
        count(a, Counter::MsrReads)?;
        a.mov(dword_ptr(rbx + slot::RESULTS as i32), eax)?;
        a.mov(dword_ptr(rbx + slot::RESULTS as i32 + 4), edx)
    })
}

fn int3(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    repeat(a, |a| {
        site(a, l, Site::Int3)?;
        a.int3()
    })
}

fn soft_interrupt(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    repeat(a, |a| {
        site(a, l, Site::SoftInterrupt)?;
        a.int(crate::layout::vector::SOFT as i32)
    })
}

fn cpuid(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    a.mov(r8, rbx)?;
    repeat(a, |a| {
        let word = |offset: u64| qword_ptr(r8 + offset as i32);
        a.mov(rax, word(slot::ARGS + 8))?;
        a.mov(rcx, word(slot::ARGS + 16))?;
        site(a, l, Site::Cpuid)?;
        a.cpuid()?;
        count(a, Counter::Cpuids)?;
        for (n, register) in [rax, rbx, rcx, rdx].into_iter().enumerate() {
            a.mov(word(slot::RESULTS + 8 * n as u64), register)?;
        }
        Ok(())
    })?;
    a.mov(rbx, r8)
}

fn invlpg(a: &mut CodeAssembler, _: &mut Labels) -> Emit {
    a.mov(r8, arg(1))?;
    repeat(a, |a| {
        a.invlpg(byte_ptr(r8))?;
        count(a, Counter::Invlpgs)
    })
}

fn spin(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    let mut top = a.create_label();
    a.test(r12, r12)?;
    a.je(l.order_done)?;
    site(a, l, Site::Spin)?;
    place(a, &mut top)?;
    a.dec(r12)?;
    a.jne(top)
}

/// `Op::ClosedSpin`.
fn closed_spin(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    a.mov(r8, qword_ptr(r15 + 8 * Counter::OtherInterrupts as i32))?;
    a.cli()?;
    repeat(a, |a| site(a, l, Site::ClosedSpin))?;
    a.mov(rax, qword_ptr(r15 + 8 * Counter::OtherInterrupts as i32))?;
    a.sub(rax, r8)?;
    a.mov(result(0), rax)?;
    a.sti()
}
