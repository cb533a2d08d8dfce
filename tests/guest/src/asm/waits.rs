//! Orders that wait: for other vCPUs, for interrupts, or for good.

use iced_x86::code_asm::*;

use super::kit::{Emit, arg, at, count, place, repeat, slot_word, store};
use super::labels::Labels;
use crate::layout::{self, apic, percpu, vector};
use crate::mailbox::{COUNTERS, COUNTERS_SIZE, Counter, MAILBOX, SLOT_SIZE, SLOTS, header, slot, status};

/// Ticks that an IPI may take.
const PATIENCE: i32 = 200;

/// `Op::Background`: sets the word, and waits until the idle loop of every other vCPU has seen it.
pub fn background(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    let (mut each, mut wait, mut next) = (a.create_label(), a.create_label(), a.create_label());
    a.cmp(r12, 1)?;
    a.ja(l.order_unknown)?;
    a.mov(at(MAILBOX + header::BACKGROUND), r12)?;
    a.mov(slot_word(slot::BACKGROUND_SEEN), r12)?;
    a.xor(r8d, r8d)?;
    a.mov(r9d, (MAILBOX + SLOTS + slot::BACKGROUND_SEEN) as u32)?;
    place(a, &mut each)?;
    a.cmp(r8, at(MAILBOX + header::VCPUS))?;
    a.jae(l.order_done)?;
    place(a, &mut wait)?;
    a.mov(rax, qword_ptr(r9))?;
    a.cmp(rax, r12)?;
    a.je(next)?;
    a.cmp(rax, slot::STOPPED as i32)?;
    a.je(next)?;
    a.call(l.rest)?;
    a.jmp(wait)?;
    place(a, &mut next)?;
    a.inc(r8)?;
    a.add(r9, SLOT_SIZE as i32)?;
    a.jmp(each)
}

/// `Op::Hlt`.
pub fn hlt(a: &mut CodeAssembler, _: &mut Labels) -> Emit {
    repeat(a, |a| a.hlt())
}

/// `Op::Stop`.
pub fn stop(a: &mut CodeAssembler, _: &mut Labels) -> Emit {
    let mut top = a.create_label();
    a.cli()?;
    count(a, Counter::Orders)?;
    store(a, slot_word(slot::BACKGROUND_SEEN), slot::STOPPED)?;
    a.mov(rax, slot_word(slot::BEGUN))?;
    a.mov(slot_word(slot::ACK), rax)?;
    place(a, &mut top)?;
    a.hlt()?;
    a.jmp(top)
}

/// `Op::Ipi`.
pub fn ipi(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    send(a, l, (0x4000 | vector::IPI) as u32, Counter::Ipis)
}

/// `Op::Nmi`: delivery mode 4 (Intel SDM volume 3A, 11.6.1).
pub fn nmi(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    send(a, l, 0x4400, Counter::Nmis)
}

/// Sends a command by the local APIC. Each waits until the target has counted it, so that none is merged with the next.
fn send(a: &mut CodeAssembler, l: &mut Labels, command: u32, counter: Counter) -> Emit {
    a.mov(r8, arg(1))?;
    a.cmp(r8, at(MAILBOX + header::VCPUS))?;
    a.jae(l.order_unknown)?;
    a.mov(r9, r8)?;
    a.shl(r9, COUNTERS_SIZE.trailing_zeros())?;
    a.add(r9, (MAILBOX + COUNTERS + 8 * counter as u64) as i32)?;
    a.shl(r8, layout::AREA.trailing_zeros())?;
    a.mov(r8d, dword_ptr(r8 + (layout::VCPU_AREAS as i32 + percpu::APIC_ID)))?;
    a.mov(r10d, apic::ICR as u32)?;
    repeat(a, |a| {
        let (mut wait, mut came) = (a.create_label(), a.create_label());
        a.mov(rdx, qword_ptr(r9))?;
        a.mov(dword_ptr(r10 + (apic::ICR_HIGH - apic::ICR) as i32), r8d)?;
        a.mov(dword_ptr(r10), command)?;
        a.mov(rcx, qword_ptr(r15 + 8 * Counter::Ticks as i32))?;
        place(a, &mut wait)?;
        a.pause()?;
        a.cmp(rdx, qword_ptr(r9))?;
        a.jne(came)?;
        a.mov(rax, qword_ptr(r15 + 8 * Counter::Ticks as i32))?;
        a.sub(rax, rcx)?;
        a.cmp(rax, PATIENCE)?;
        a.jb(wait)?;
        store(a, slot_word(slot::STATUS), status::TIMED_OUT)?;
        a.jmp(l.order_done)?;
        place(a, &mut came)
    })
}
