//! The kernel thread of each vCPU: its background traffic once a tick, its orders, and hlt.

use iced_x86::code_asm::*;

use super::kit::{Emit, at, count, own, place, read_msr, slot_word, write_msr};
use super::labels::Labels;
use super::msr;
use crate::layout::{self, percpu};
use crate::mailbox::{Counter, MAILBOX, Site, header, slot};

/// From this CR8 on the timer's vector is held back (its class is 14), so hlt might not end.
const BLOCKING_CR8: i32 = 14;

/// The thread.
pub fn emit(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    idle(a, l)?;
    traffic(a, l)?;
    rest(a, l)
}

fn idle(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    let (mut run, mut order, mut spin) = (a.create_label(), a.create_label(), a.create_label());
    place(a, &mut l.idle)?;
    count(a, Counter::Heartbeat)?;
    a.call(l.traffic)?;
    a.mov(rbx, own(percpu::SLOT))?;
    // With interrupts off and nothing to run, a background of 0 means that nothing will run.
    a.cli()?;
    a.cmp(own(percpu::RUNNABLE), 0)?;
    a.jne(run)?;
    a.mov(rax, at(MAILBOX + header::BACKGROUND))?;
    a.mov(slot_word(slot::BACKGROUND_SEEN), rax)?;
    a.mov(rax, slot_word(slot::SEQ))?;
    a.cmp(rax, slot_word(slot::ACK))?;
    a.jne(order)?;
    a.cmp(own(percpu::CR8), BLOCKING_CR8)?;
    a.jae(spin)?;
    a.sti()?;
    place(a, &mut l.sites[Site::IdleHlt as usize])?;
    a.hlt()?;
    a.jmp(l.idle)?;
    place(a, &mut spin)?;
    a.sti()?;
    a.jmp(l.idle)?;
    place(a, &mut run)?;
    a.sti()?;
    a.call(l.switch_away)?;
    a.jmp(l.idle)?;
    place(a, &mut order)?;
    a.mov(own(percpu::BUSY), 1)?;
    a.sti()?;
    a.call(l.perform)?;
    a.jmp(l.idle)
}

/// `rest`: waits for the next interrupt, if one can come.
fn rest(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    let mut end = a.create_label();
    place(a, &mut l.rest)?;
    a.cmp(own(percpu::CR8), BLOCKING_CR8)?;
    a.jae(end)?;
    a.hlt()?;
    place(a, &mut end)?;
    a.ret()
}

/// `traffic`: once a tick, some of everything that a monitor can watch.
fn traffic(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    let mut end = a.create_label();
    place(a, &mut l.traffic)?;
    a.cmp(at(MAILBOX + header::BACKGROUND), 0)?;
    a.je(end)?;
    a.mov(rax, qword_ptr(r15 + 8 * Counter::Ticks as i32))?;
    a.cmp(rax, own(percpu::TRAFFIC_TICK))?;
    a.je(end)?;
    a.mov(own(percpu::TRAFFIC_TICK), rax)?;
    priorities(a)?;
    read_msr(a, msr::KERNEL_GS_BASE)?;
    write_msr(a, msr::KERNEL_GS_BASE)?;
    debug_registers(a)?;
    a.xor(eax, eax)?;
    a.xor(ecx, ecx)?;
    a.cpuid()?;
    count(a, Counter::Cpuids)?;
    a.int3()?;
    a.mov(al, own_number_byte())?;
    a.out(0x80, al)?;
    count(a, Counter::Outs)?;
    a.in_(al, 0x80)?;
    count(a, Counter::Ins)?;
    place(a, &mut end)?;
    a.ret()
}

fn own_number_byte() -> AsmMemoryOperand {
    byte_ptr(r14 + percpu::NUMBER)
}

fn priorities(a: &mut CodeAssembler) -> Emit {
    for value in [1, 0] {
        a.mov(eax, value)?;
        a.mov(cr8, rax)?;
        a.mov(own(percpu::CR8), rax)?;
        count(a, Counter::Cr8Writes)?;
    }
    a.mov(rax, cr8)?;
    count(a, Counter::Cr8Reads)
}

/// DR0 to DR3, DR6 and DR7 written, and two read back. No breakpoint is enabled.
fn debug_registers(a: &mut CodeAssembler) -> Emit {
    let values = [
        (dr0, layout::DATA as u32),
        (dr1, layout::DATA as u32 + 8),
        (dr2, layout::CODE as u32),
        (dr3, layout::SCRATCH as u32),
        (dr6, 0xffff_0ff0),
        (dr7, 0x400),
    ];
    for (register, value) in values {
        a.mov(eax, value)?;
        a.mov(register, rax)?;
        count(a, Counter::DrWrites)?;
    }
    for register in [dr6, dr7] {
        a.mov(rax, register)?;
        count(a, Counter::DrReads)?;
    }
    Ok(())
}
