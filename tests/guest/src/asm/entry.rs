//! The start of every vCPU in long mode: what all share once, then its own tables, MSRs and local APIC.

use iced_x86::code_asm::*;

use super::kit::{Emit, at, count, own, place, store, write_apic, write_msr, zero};
use super::labels::Labels;
use super::{msr, process};
use crate::layout::{self, apic, percpu, selector, vcpu, vector};
use crate::mailbox::{self, Counter, MAILBOX, MAX_VCPUS, Site, boot, header, state};

/// The entry: RDI is the vCPU's number, RSI the number of vCPUs.
pub fn emit(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    let (mut park, mut other, mut ready) = (a.create_label(), a.create_label(), a.create_label());
    place(a, &mut l.entry)?;
    a.cli()?;
    a.cld()?;
    a.cmp(rdi, MAX_VCPUS as i32)?;
    a.jae(park)?;
    a.mov(r14, rdi)?;
    a.shl(r14, layout::AREA.trailing_zeros())?;
    a.add(r14, layout::VCPU_AREAS as i32)?;
    a.lea(rsp, own(vcpu::STACK as i32))?;
    a.mov(r12, rdi)?;
    a.test(rdi, rdi)?;
    a.jne(other)?;
    shared(a, l)?;
    a.mov(at(layout::boot::READY), 1)?;
    place(a, &mut other)?;
    a.pause()?;
    a.cmp(at(layout::boot::READY), 0)?;
    a.jne(ready)?;
    a.jmp(other)?;
    place(a, &mut park)?;
    a.hlt()?;
    a.jmp(park)?;
    place(a, &mut ready)?;
    a.mov(rax, layout::KERNEL_PML4)?;
    a.mov(cr3, rax)?;
    area(a)?;
    process::set_up(a, l)?;
    descriptors(a)?;
    interrupt_table(a)?;
    msrs(a, l)?;
    local_apic(a)?;
    online(a, l)
}

/// Once, by the first vCPU: the kernel's map and the mailbox's header, the magic last.
fn shared(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    let mut few = a.create_label();
    a.mov(r13, rsi)?;
    a.cmp(r13, MAX_VCPUS as i32)?;
    a.jbe(few)?;
    a.mov(r13d, MAX_VCPUS as u32)?;
    place(a, &mut few)?;
    a.call(l.kernel_tables)?;
    a.mov(edi, MAILBOX as u32)?;
    zero(a, 0x1000)?;
    a.mov(edi, layout::COUNTERS as u32)?;
    zero(a, 0x1000)?;
    a.mov(at(MAILBOX + header::VCPUS), r13)?;
    how(a)?;
    header_words(a, l)?;
    for (site, label) in Site::ALL.iter().zip(l.sites.clone()) {
        a.lea(rax, qword_ptr(label))?;
        a.mov(at(mailbox::site_of(*site)), rax)?;
    }
    store(a, at(MAILBOX + header::MAGIC), u64::from_le_bytes(mailbox::MAGIC))
}

/// The way in: a direct start has left no word.
fn how(a: &mut CodeAssembler) -> Emit {
    let mut known = a.create_label();
    a.mov(rax, at(layout::boot::HOW))?;
    a.test(rax, rax)?;
    a.jne(known)?;
    a.mov(eax, boot::DIRECT as u32)?;
    place(a, &mut known)?;
    a.mov(at(MAILBOX + header::BOOT), rax)
}

fn header_words(a: &mut CodeAssembler, l: &Labels) -> Emit {
    let words = [
        (header::VERSION, mailbox::VERSION),
        (header::BACKGROUND, 1),
        (header::KERNEL_CR3, layout::KERNEL_PML4),
        (header::GREETING, layout::GREETING),
        (header::REPLY, layout::REPLY),
        (header::DATA, layout::DATA),
        (header::CODE, layout::CODE),
        (header::SCRATCH, layout::SCRATCH),
        (header::GUARD, layout::GUARD),
        (header::USER_DATA, layout::USER_DATA),
        (header::USER_CODE, layout::USER_CODE),
        (header::USER_SUPERVISOR, layout::USER_SUPERVISOR),
        (header::USER_UNMAPPED, layout::USER_UNMAPPED),
        (header::USER_LAZY, layout::USER_LAZY),
        (header::USER_TEXT, layout::USER_TEXT),
        (header::TEXT, layout::TEXT32),
        (header::TEXT_END, layout::TEXT_END),
        (header::TIMER_VECTOR, vector::TIMER),
        (header::IPI_VECTOR, vector::IPI),
        (header::SOFT_VECTOR, vector::SOFT),
    ];
    for (offset, value) in words {
        store(a, at(MAILBOX + offset), value)?;
    }
    a.lea(rax, qword_ptr(l.syscall))?;
    a.mov(at(MAILBOX + header::LSTAR), rax)
}

/// The vCPU's own area: zeroed but for the stack in use, then its first words. R12 is its number.
fn area(a: &mut CodeAssembler) -> Emit {
    a.mov(rdi, r14)?;
    zero(a, 0x3000)?;
    a.lea(rdi, own(vcpu::STACK as i32))?;
    zero(a, vcpu::IST_DEBUG - vcpu::STACK)?;
    a.mov(own(percpu::NUMBER), r12)?;
    a.mov(r15, r12)?;
    a.shl(r15, mailbox::COUNTERS_SIZE.trailing_zeros())?;
    a.add(r15, (MAILBOX + mailbox::COUNTERS) as i32)?;
    a.mov(own(percpu::COUNTERS), r15)?;
    a.mov(rax, r12)?;
    a.shl(rax, mailbox::SLOT_SIZE.trailing_zeros())?;
    a.add(rax, (MAILBOX + mailbox::SLOTS) as i32)?;
    a.mov(own(percpu::SLOT), rax)
}

/// GDT, segment registers, TSS.
fn descriptors(a: &mut CodeAssembler) -> Emit {
    let descriptors =
        [0, super::KERNEL_CODE, super::KERNEL_DATA, super::USER_CODE32, super::USER_DATA, super::USER_CODE];
    for (n, value) in descriptors.into_iter().enumerate() {
        store(a, own((vcpu::GDT + 8 * n as u64) as i32), value)?;
    }
    // The TSS lies below 4 GiB: base bits 23:0 and 31:24 around the type (Intel SDM volume 3A, 8.2.3).
    a.lea(rax, own(vcpu::TSS as i32))?;
    a.mov(rcx, rax)?;
    a.and(ecx, 0xff_ffff)?;
    a.shl(rcx, 16)?;
    a.shr(rax, 24)?;
    a.shl(rax, 56)?;
    a.or(rax, rcx)?;
    a.mov(rcx, 0x0000_8900_0000_0067_u64)?;
    a.or(rax, rcx)?;
    a.mov(own((vcpu::GDT + u64::from(selector::TSS)) as i32), rax)?;
    a.mov(own((vcpu::GDT + u64::from(selector::TSS)) as i32 + 8), 0)?;
    let stacks = [(0x24, vcpu::IST_DOUBLE), (0x2c, vcpu::IST_NMI), (0x34, vcpu::IST_DEBUG)];
    for (word, top) in stacks {
        a.lea(rax, own(top as i32))?;
        a.mov(own(vcpu::TSS as i32 + word), rax)?;
    }
    a.mov(word_ptr(r14 + vcpu::TSS as i32 + 0x66), 0x68)?;
    load_table(a, vcpu::GDT, 0x3f, |a| a.lgdt(ptr(rsp + 6)))?;
    segments(a)?;
    a.mov(eax, selector::TSS)?;
    a.ltr(ax)
}

/// Loads a descriptor table of the vCPU's area by its pseudo-descriptor, built on the stack.
fn load_table(a: &mut CodeAssembler, offset: u64, limit: u32, load: fn(&mut CodeAssembler) -> Emit) -> Emit {
    a.sub(rsp, 16)?;
    a.lea(rax, own(offset as i32))?;
    a.mov(word_ptr(rsp + 6), limit)?;
    a.mov(qword_ptr(rsp + 8), rax)?;
    load(a)?;
    a.add(rsp, 16)
}

/// The data segments, and CS by an iretq to the next instruction.
fn segments(a: &mut CodeAssembler) -> Emit {
    let mut next = a.create_label();
    a.mov(eax, selector::KERNEL_DATA)?;
    for segment in [ds, es, ss] {
        a.mov(segment, eax)?;
    }
    a.xor(eax, eax)?;
    for segment in [fs, gs] {
        a.mov(segment, eax)?;
    }
    a.mov(rcx, rsp)?;
    a.push(selector::KERNEL_DATA as i32)?;
    a.push(rcx)?;
    a.push(2)?;
    a.push(selector::KERNEL_CODE as i32)?;
    a.lea(rax, qword_ptr(next))?;
    a.push(rax)?;
    a.iretq()?;
    place(a, &mut next)
}

/// 256 interrupt gates. Ring 3 may use those of int3 and of the orders' software interrupt.
fn interrupt_table(a: &mut CodeAssembler) -> Emit {
    let mut top = a.create_label();
    a.lea(rdi, own(vcpu::IDT as i32))?;
    a.mov(ecx, layout::STUBS as u32)?;
    place(a, &mut top)?;
    a.mov(eax, ecx)?;
    a.and(eax, 0xffff)?;
    a.or(eax, (selector::KERNEL_CODE << 16) as i32)?;
    a.mov(dword_ptr(rdi), eax)?;
    a.mov(eax, ecx)?;
    a.and(eax, 0xffff_0000_u32)?;
    a.or(eax, 0x8e00)?;
    a.mov(dword_ptr(rdi + 4), eax)?;
    a.mov(qword_ptr(rdi + 8), 0)?;
    a.add(rdi, 16)?;
    a.add(ecx, layout::STUB_SIZE as i32)?;
    a.cmp(ecx, (layout::STUBS + 256 * layout::STUB_SIZE) as i32)?;
    a.jb(top)?;
    let gate = |vector: u64, byte: i32| byte_ptr(r14 + (vcpu::IDT + 16 * vector) as i32 + byte);
    for user in [3, vector::SOFT] {
        a.mov(gate(user, 5), 0xee)?;
    }
    for (vector, stack) in [(8, 1), (2, 2), (1, 3)] {
        a.mov(gate(vector, 4), stack)?;
    }
    load_table(a, vcpu::IDT, 0xfff, |a| a.lidt(ptr(rsp + 6)))
}

fn msrs(a: &mut CodeAssembler, l: &Labels) -> Emit {
    // SYSRET takes CS and SS from bits 63:48, plus 16 and plus 8 (Intel SDM volume 2B, SYSRET).
    a.mov(rax, (0x1b_u64 << 48) | u64::from(selector::KERNEL_CODE) << 32)?;
    write_msr(a, msr::STAR)?;
    a.lea(rax, qword_ptr(l.syscall))?;
    write_msr(a, msr::LSTAR)?;
    // TF, IF, DF, NT and AC are clear in the kernel.
    a.mov(eax, 0x4_4700)?;
    write_msr(a, msr::FMASK)?;
    a.mov(rax, r14)?;
    write_msr(a, msr::GS_BASE)?;
    a.xor(eax, eax)?;
    write_msr(a, msr::KERNEL_GS_BASE)
}

fn local_apic(a: &mut CodeAssembler) -> Emit {
    a.xor(eax, eax)?;
    a.mov(cr8, rax)?;
    count(a, Counter::Cr8Writes)?;
    a.mov(ecx, apic::ID as u32)?;
    a.mov(eax, dword_ptr(rcx))?;
    a.mov(own(percpu::APIC_ID), rax)?;
    write_apic(a, apic::SPURIOUS, 0x100 | vector::SPURIOUS as u32)?;
    // Divide by 16; periodic.
    write_apic(a, apic::DIVIDE, 3)?;
    write_apic(a, apic::TIMER, 0x2_0000 | vector::TIMER as u32)?;
    tick_count(a)?;
    a.mov(at(MAILBOX + header::TICK_COUNT), rax)?;
    a.mov(ecx, apic::INITIAL as u32)?;
    a.mov(dword_ptr(rcx), eax)
}

/// RAX becomes the timer's count of 10 ms: from the clock that CPUID leaf 0x15 tells in ECX (Intel SDM volume 3A,
/// 11.5.4), else as at Xen's or QEMU's clock.
fn tick_count(a: &mut CodeAssembler) -> Emit {
    let (mut unknown, mut known) = (a.create_label(), a.create_label());
    a.xor(eax, eax)?;
    cpuid(a)?;
    a.cmp(eax, 0x15)?;
    a.jb(unknown)?;
    a.mov(eax, 0x15)?;
    a.xor(ecx, ecx)?;
    cpuid(a)?;
    a.mov(eax, ecx)?;
    a.xor(edx, edx)?;
    a.mov(ecx, 16 * 100)?;
    a.div(ecx)?;
    a.test(eax, eax)?;
    a.jne(known)?;
    place(a, &mut unknown)?;
    a.mov(eax, 0x4000_0000)?;
    cpuid(a)?;
    a.mov(eax, apic::TICK_OF_XEN)?;
    a.cmp(ebx, u32::from_le_bytes(*b"XenV") as i32)?;
    a.je(known)?;
    a.mov(eax, apic::TICK)?;
    place(a, &mut known)
}

fn cpuid(a: &mut CodeAssembler) -> Emit {
    a.cpuid()?;
    count(a, Counter::Cpuids)
}

/// Counts itself in; the last one says that the guest runs.
fn online(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    a.mov(eax, 1)?;
    a.lock().xadd(at(MAILBOX + header::ONLINE), rax)?;
    a.inc(rax)?;
    a.cmp(rax, at(MAILBOX + header::VCPUS))?;
    a.jne(l.idle)?;
    a.mov(at(MAILBOX + header::STATE), state::RUNNING as i32)?;
    a.jmp(l.idle)
}
