//! The guest in stock QEMU: it starts on all vCPUs, works in the background, performs orders exactly, and answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{PATIENCE, Qemu, boot};
use vmtree_guest::mailbox::{self, Counter, MAILBOX, Op, boot as how, header};
use vmtree_guest::{Bytes, Outcome};

/// What the background traffic must move on every vCPU.
const BACKGROUND: &[Counter] = &[
    Counter::Heartbeat,
    Counter::Ticks,
    Counter::Cr3Writes,
    Counter::Cr8Writes,
    Counter::Cr8Reads,
    Counter::MsrWrites,
    Counter::MsrReads,
    Counter::DrWrites,
    Counter::DrReads,
    Counter::Cpuids,
    Counter::Outs,
    Counter::Ins,
    Counter::Breakpoints,
    Counter::PageFaults,
    Counter::Syscalls,
    Counter::Switches,
    Counter::LazyPages,
    Counter::SelfModified,
];

/// What never moves in a healthy guest.
const NEVER: &[Counter] = &[
    Counter::SelfModifiedWrong,
    Counter::OtherExceptions,
    Counter::OtherInterrupts,
    Counter::GeneralProtections,
    Counter::InvalidOpcodes,
    Counter::Nmis,
];

fn progresses(vcpus: u64) {
    let Some(qemu) = boot(&format!("background traffic of {vcpus} vCPUs"), vcpus) else { return };
    let mailbox = &qemu.mailbox;
    assert_eq!(mailbox.header(header::VCPUS).unwrap(), vcpus);
    assert_eq!(mailbox.header(header::VERSION).unwrap(), mailbox::VERSION);
    assert_eq!(mailbox.header(header::BOOT).unwrap(), how::PVH);
    for vcpu in 0..vcpus {
        let first = mailbox.counters(vcpu).unwrap();
        let start = Instant::now();
        loop {
            let moved = mailbox.counters(vcpu).unwrap().since(&first);
            let still: Vec<_> = BACKGROUND.iter().filter(|counter| !moved.contains_key(counter)).collect();
            if still.is_empty() {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "vCPU {vcpu}: no progress of {still:?}");
            sleep(Duration::from_millis(10));
        }
        let now = mailbox.counters(vcpu).unwrap();
        for counter in NEVER {
            assert_eq!(now.get(*counter), 0, "vCPU {vcpu}: {}", counter.name());
        }
    }
}

#[test]
fn one_vcpu_progresses() {
    progresses(1);
}

#[test]
fn two_vcpus_progress() {
    progresses(2);
}

#[test]
fn four_vcpus_progress() {
    progresses(4);
}

/// Orders `op` and returns how it ended, after comparing what the guest counted with `counts`. The background is quiet;
/// ticks and rounds of the idle loop go on.
fn ordered(qemu: &Qemu, vcpu: u64, op: Op, args: &[u64], counts: &[(Counter, u64)]) -> Outcome {
    let before = qemu.mailbox.counters(vcpu).unwrap();
    let outcome = qemu.mailbox.order(vcpu, op, args, PATIENCE).unwrap();
    let mut counted = qemu.mailbox.counters(vcpu).unwrap().since(&before);
    counted.retain(|counter, _| !matches!(counter, Counter::Ticks | Counter::Heartbeat));
    let mut expected: BTreeMap<_, _> = counts.iter().copied().collect();
    expected.insert(Counter::Orders, 1);
    assert_eq!(counted, expected, "{} {args:x?}", op.name());
    outcome
}

fn result(outcome: Outcome) -> u64 {
    match outcome {
        Outcome::Done([value, ..]) => value,
        other => panic!("not done: {other:x?}"),
    }
}

fn quiet(test: &str, vcpus: u64) -> Option<Qemu> {
    let qemu = boot(test, vcpus)?;
    qemu.mailbox.background(false, PATIENCE).unwrap();
    Some(qemu)
}

/// What a ring 3 order costs besides what it orders: to the process and back.
const TRIP: [(Counter, u64); 2] = [(Counter::Switches, 2), (Counter::Cr3Writes, 2)];

fn trip(more: &[(Counter, u64)]) -> Vec<(Counter, u64)> {
    [TRIP.as_slice(), more].concat()
}

#[test]
fn quiet_is_quiet_and_ends() {
    let Some(qemu) = quiet("quiet", 2) else { return };
    let before: Vec<_> = (0..2).map(|vcpu| qemu.mailbox.counters(vcpu).unwrap()).collect();
    sleep(Duration::from_millis(300));
    for vcpu in 0..2 {
        let mut moved = qemu.mailbox.counters(vcpu).unwrap().since(&before[vcpu as usize]);
        assert!(moved.remove(&Counter::Ticks) > Some(0), "vCPU {vcpu} still gets ticks");
        moved.remove(&Counter::Heartbeat);
        assert!(moved.is_empty(), "vCPU {vcpu}: {moved:?}");
    }
    qemu.mailbox.background(true, PATIENCE).unwrap();
    let before = qemu.mailbox.counters(1).unwrap().get(Counter::Syscalls);
    let start = Instant::now();
    while qemu.mailbox.counters(1).unwrap().get(Counter::Syscalls) == before {
        assert!(start.elapsed() < PATIENCE, "the background does not start again");
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn control_registers() {
    let Some(qemu) = quiet("control registers", 2) else { return };
    for vcpu in 0..2 {
        let last = ordered(&qemu, vcpu, Op::WriteCr3, &[40], &[(Counter::Cr3Writes, 40)]);
        assert_eq!(result(last), qemu.mailbox.process_cr3(vcpu, 1).unwrap());
        let kernel = qemu.mailbox.header(header::KERNEL_CR3).unwrap();
        let last = ordered(&qemu, vcpu, Op::WriteCr3, &[3, kernel], &[(Counter::Cr3Writes, 3)]);
        assert_eq!(result(last), kernel);
        // AM, then OSFXSR unchanged.
        let cr0 = ordered(&qemu, vcpu, Op::WriteCr0, &[2, 1 << 18], &[(Counter::Cr0Writes, 2)]);
        assert_eq!(result(cr0) & 0x8005_0033, 0x8001_0033);
        let cr4 = ordered(&qemu, vcpu, Op::WriteCr4, &[5, 0], &[(Counter::Cr4Writes, 5)]);
        assert_eq!(result(cr4) & 0x620, 0x620);
        ordered(&qemu, vcpu, Op::WriteCr8, &[7, 5], &[(Counter::Cr8Writes, 7)]);
        assert_eq!(result(ordered(&qemu, vcpu, Op::ReadCr8, &[2], &[(Counter::Cr8Reads, 2)])), 5);
        // No tick comes now, but the vCPU still takes orders.
        ordered(&qemu, vcpu, Op::WriteCr8, &[1, 15], &[(Counter::Cr8Writes, 1)]);
        ordered(&qemu, vcpu, Op::WriteCr8, &[1, 0], &[(Counter::Cr8Writes, 1)]);
        ordered(&qemu, vcpu, Op::Invlpg, &[4, 0x20_0000], &[(Counter::Invlpgs, 4)]);
    }
}

#[test]
fn msrs_and_debug_registers() {
    const KERNEL_GS_BASE: u64 = 0xc000_0102;
    let Some(qemu) = quiet("MSRs and debug registers", 1) else { return };
    let value = 0xffff_8000_1234_5678;
    ordered(&qemu, 0, Op::WriteMsr, &[9, KERNEL_GS_BASE, value], &[(Counter::MsrWrites, 9)]);
    let read = ordered(&qemu, 0, Op::ReadMsr, &[2, KERNEL_GS_BASE], &[(Counter::MsrReads, 2)]);
    assert_eq!(result(read), value);
    let lstar = ordered(&qemu, 0, Op::ReadMsr, &[1, 0xc000_0082], &[(Counter::MsrReads, 1)]);
    assert_eq!(result(lstar), qemu.mailbox.header(header::LSTAR).unwrap());
    for (number, value) in [(0, 0x20_3000), (1, 1), (2, 2), (3, u64::MAX), (6, 0xffff_0ff0), (7, 0x400)] {
        ordered(&qemu, 0, Op::WriteDr, &[6, number, value], &[(Counter::DrWrites, 6)]);
        let read = ordered(&qemu, 0, Op::ReadDr, &[1, number], &[(Counter::DrReads, 1)]);
        assert_eq!(result(read), value, "DR{number}");
    }
    let refused = qemu.mailbox.order(0, Op::WriteDr, &[1, 4, 0], PATIENCE);
    assert!(refused.unwrap_err().to_string().contains("refused the order write_dr"));
}

#[test]
fn interrupts_and_ports() {
    let Some(qemu) = quiet("interrupts and ports", 2) else { return };
    ordered(&qemu, 0, Op::Int3, &[11], &[(Counter::Breakpoints, 11)]);
    ordered(&qemu, 1, Op::SoftInterrupt, &[12], &[(Counter::SoftInterrupts, 12)]);
    let Outcome::Done(leaf) = ordered(&qemu, 0, Op::Cpuid, &[2, 0], &[(Counter::Cpuids, 2)]) else {
        panic!("cpuid faulted")
    };
    assert!(leaf[0] >= 1 && leaf[1] != 0 && leaf[1] >> 32 == 0);
    // The CMOS index and data ports of the PC: register 0x0e of the RAM keeps what is written (7 bits of index).
    ordered(&qemu, 0, Op::Out, &[1, 0x70, 0x50, 1], &[(Counter::Outs, 1)]);
    ordered(&qemu, 0, Op::Out, &[3, 0x71, 0xa5, 1], &[(Counter::Outs, 3)]);
    assert_eq!(result(ordered(&qemu, 0, Op::In, &[2, 0x71, 1], &[(Counter::Ins, 2)])), 0xa5);
    assert!(qemu.mailbox.order(0, Op::Out, &[1, 0x80, 0, 3], PATIENCE).is_err());
    ordered(&qemu, 0, Op::Ipi, &[5, 0], &[(Counter::Ipis, 5)]);
    let before = qemu.mailbox.counters(1).unwrap().get(Counter::Ipis);
    ordered(&qemu, 0, Op::Ipi, &[6, 1], &[]);
    assert_eq!(qemu.mailbox.counters(1).unwrap().get(Counter::Ipis) - before, 6);
    let ticks = qemu.mailbox.counters(0).unwrap().get(Counter::Ticks);
    ordered(&qemu, 0, Op::Hlt, &[4], &[]);
    assert!(qemu.mailbox.counters(0).unwrap().get(Counter::Ticks) - ticks >= 4);
    ordered(&qemu, 0, Op::Spin, &[1_000_000], &[]);
    ordered(&qemu, 0, Op::Nop, &[], &[]);
}

#[test]
fn memory_in_ring_0() {
    let Some(qemu) = quiet("memory in ring 0", 1) else { return };
    let of = |offset| qemu.mailbox.header(offset).unwrap();
    let (data, code, scratch, guard) =
        (of(header::DATA), of(header::CODE), of(header::SCRATCH), of(header::GUARD));
    for (size, value) in [(1, 0x10), (2, 0x1110), (4, 0x1312_1110), (8, 0x1716_1514_1312_1110)] {
        assert_eq!(result(ordered(&qemu, 0, Op::Read, &[3, data + 0x10, size], &[])), value);
        ordered(&qemu, 0, Op::Write, &[2, scratch + 8 * size, value, size], &[]);
        assert_eq!(qemu.mailbox.word(scratch + 8 * size).unwrap(), value);
    }
    assert_eq!(result(ordered(&qemu, 0, Op::Exec, &[4, code], &[])), 0x600d_c0de);
    ordered(&qemu, 0, Op::Fill, &[1, scratch, 0x5a, 0x100], &[]);
    assert_eq!(qemu.mailbox.word(scratch + 0xf8).unwrap(), 0x5a5a_5a5a_5a5a_5a5a);
    ordered(&qemu, 0, Op::Copy, &[1, scratch + 1, data, 100], &[]);
    let (mut copy, mut from) = ([0; 100], [0; 100]);
    qemu.mailbox.bytes().read(scratch + 1, &mut copy).unwrap();
    qemu.mailbox.bytes().read(data, &mut from).unwrap();
    assert_eq!(copy, from);
    for (op, args, error) in [
        (Op::Read, vec![1, guard + 8, 8], 0),
        (Op::Write, vec![1, guard + 8, 0, 8], 2),
        (Op::Exec, vec![1, guard + 8], 0x10),
    ] {
        let fault = ordered(&qemu, 0, op, &args, &[(Counter::PageFaults, 1)]);
        let Outcome::Faulted { vector, error: found, cr2, .. } = fault else { panic!("{fault:x?}") };
        assert_eq!((vector, found, cr2), (14, error, guard + 8), "{}", op.name());
    }
    // Not canonical: #GP(0) at the instruction itself.
    let counts = [(Counter::GeneralProtections, 1)];
    let fault = ordered(&qemu, 0, Op::Read, &[3, 1 << 62, 8], &counts);
    let Outcome::Faulted { vector: 13, error: 0, rip, .. } = fault else { panic!("{fault:x?}") };
    assert_eq!(rip, qemu.mailbox.site(mailbox::Site::Read8).unwrap());
    // ud2 in the scratch page.
    qemu.mailbox.bytes().write(scratch, &[0x0f, 0x0b]).unwrap();
    let fault = ordered(&qemu, 0, Op::Exec, &[1, scratch], &[(Counter::InvalidOpcodes, 1)]);
    let Outcome::Faulted { vector: 6, rip, .. } = fault else { panic!("{fault:x?}") };
    assert_eq!(rip, scratch);
}

#[test]
fn ring_3() {
    let Some(qemu) = quiet("ring 3", 2) else { return };
    let of = |offset| qemu.mailbox.header(offset).unwrap();
    let (data, code) = (of(header::USER_DATA), of(header::USER_CODE));
    let done = (Counter::Syscalls, 1);
    for vcpu in 0..2 {
        for (size, value) in [(1, 0x10), (2, 0x1110), (4, 0x1312_1110), (8, 0x1716_1514_1312_1110)] {
            let args = [2, data + 0x10, size];
            assert_eq!(result(ordered(&qemu, vcpu, Op::UserRead, &args, &trip(&[done]))), value);
            let args = [2, data + 0x800, value, size];
            ordered(&qemu, vcpu, Op::UserWrite, &args, &trip(&[done]));
            let written = qemu.mailbox.word(of(header::DATA) + 0x800).unwrap();
            assert_eq!(written & (u64::MAX >> (64 - 8 * size)), value);
        }
        let value = result(ordered(&qemu, vcpu, Op::UserExec, &[3, code], &trip(&[done])));
        assert_eq!(value, 0x600d_c0de);
        ordered(&qemu, vcpu, Op::UserInt3, &[5], &trip(&[done, (Counter::Breakpoints, 5)]));
        ordered(&qemu, vcpu, Op::UserSyscall, &[20], &trip(&[(Counter::Syscalls, 21)]));
        let counts = [
            (Counter::Syscalls, 8),
            (Counter::PageFaults, 7),
            (Counter::LazyPages, 7),
            (Counter::Invlpgs, 28),
        ];
        ordered(&qemu, vcpu, Op::UserLazy, &[7], &trip(&counts));
        let counts = [(Counter::Syscalls, 7), (Counter::SelfModified, 6)];
        ordered(&qemu, vcpu, Op::UserSelfModify, &[6], &trip(&counts));
        ordered(&qemu, vcpu, Op::UserSpin, &[100_000], &trip(&[done]));
    }
}

#[test]
fn faults_in_ring_3() {
    let Some(qemu) = quiet("faults in ring 3", 1) else { return };
    let of = |offset| qemu.mailbox.header(offset).unwrap();
    let (unmapped, supervisor) = (of(header::USER_UNMAPPED), of(header::USER_SUPERVISOR));
    let (code, data) = (of(header::USER_CODE), of(header::USER_DATA));
    let cases = [
        (Op::UserRead, vec![1, unmapped + 5, 1], 4, unmapped + 5),
        (Op::UserWrite, vec![1, unmapped, 0, 8], 6, unmapped),
        (Op::UserExec, vec![1, unmapped], 0x14, unmapped),
        (Op::UserRead, vec![1, supervisor, 8], 5, supervisor),
        (Op::UserWrite, vec![1, supervisor, 0, 4], 7, supervisor),
        (Op::UserWrite, vec![1, code, 0, 1], 7, code),
        (Op::UserExec, vec![1, data], 0x15, data),
        (Op::UserRead, vec![1, MAILBOX, 8], 5, MAILBOX),
    ];
    for (op, args, error, address) in cases {
        let counts = trip(&[(Counter::Syscalls, 1), (Counter::PageFaults, 1)]);
        let fault = ordered(&qemu, 0, op, &args, &counts);
        let Outcome::Faulted { vector, error: found, cr2, .. } = fault else { panic!("{fault:x?}") };
        assert_eq!((vector, found, cr2), (14, error, address), "{} {args:x?}", op.name());
    }
    // A privileged instruction in the code page: hlt.
    qemu.mailbox.bytes().write(of(header::CODE) + 0x100, &[0xf4]).unwrap();
    let counts = trip(&[(Counter::Syscalls, 1), (Counter::GeneralProtections, 1)]);
    let fault = ordered(&qemu, 0, Op::UserExec, &[1, code + 0x100], &counts);
    let Outcome::Faulted { vector: 13, rip, .. } = fault else { panic!("{fault:x?}") };
    assert_eq!(rip, code + 0x100);
}

#[test]
fn the_greeting_is_answered() {
    let Some(qemu) = boot("the greeting", 2) else { return };
    let mailbox = &qemu.mailbox;
    let greeting = mailbox.header(header::GREETING).unwrap();
    let mut text = vec![0; mailbox::GREETING_TEXT.len() + 1];
    mailbox.bytes().read(greeting, &mut text).unwrap();
    assert_eq!(text, [mailbox::GREETING_TEXT.as_bytes(), &[0]].concat());
    assert_eq!(mailbox.header(header::GREETING_SEEN).unwrap(), 0);
    assert_eq!(mailbox.reply().unwrap(), "");
    for (n, text) in
        ["Good evening, [guest]~", "hello again, and again, with more than forty bytes"].iter().enumerate()
    {
        mailbox.bytes().write(greeting, &[text.as_bytes(), &[0]].concat()).unwrap();
        let start = Instant::now();
        while mailbox.header(header::GREETING_SEEN).unwrap() <= n as u64
            || mailbox.reply().unwrap() != text.to_ascii_uppercase()
        {
            assert!(start.elapsed() < PATIENCE, "no answer: {:?}", mailbox.reply());
            sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn orders_run_with_the_background_on_and_at_once() {
    let Some(qemu) = boot("orders at once", 2) else { return };
    for _ in 0..20 {
        let posted: Vec<_> =
            (0..2).map(|vcpu| qemu.mailbox.post(vcpu, Op::UserLazy, &[50]).unwrap()).collect();
        for (vcpu, seq) in posted.into_iter().enumerate() {
            let outcome = qemu.mailbox.outcome(vcpu as u64, Op::UserLazy, seq, PATIENCE).unwrap();
            assert!(matches!(outcome, Outcome::Done(_)));
        }
    }
}

#[test]
fn a_stopped_vcpu_stays_stopped_and_the_other_goes_on() {
    let Some(qemu) = boot("stop", 2) else { return };
    qemu.mailbox.order(1, Op::Stop, &[], PATIENCE).unwrap();
    let before = qemu.mailbox.counters(1).unwrap();
    qemu.mailbox.background(false, PATIENCE).unwrap();
    ordered(&qemu, 0, Op::Spin, &[10], &[]);
    let ipi = qemu.mailbox.order(0, Op::Ipi, &[1, 1], PATIENCE).unwrap();
    assert_eq!(ipi, Outcome::TimedOut);
    assert!(qemu.mailbox.counters(1).unwrap().since(&before).is_empty());
}
