//! The guest in stock QEMU: it starts on all vCPUs, works in the background, performs orders exactly, and answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{PATIENCE, Qemu, boot, boot_on};
use vmtree_guest::cases::cases;
use vmtree_guest::mailbox::{self, Counter, Op, boot as how, header};
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

fn quiet(test: &str, vcpus: u64) -> Option<Qemu> {
    let qemu = boot(test, vcpus)?;
    qemu.mailbox.background(false, PATIENCE).unwrap();
    Some(qemu)
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
fn each_order_counts_and_ends_as_the_table_says() {
    // The second one has XSAVE.
    for cpu in ["qemu64", "max"] {
        let Some(qemu) = boot_on("the table of orders", 2, cpu) else { return };
        qemu.mailbox.background(false, PATIENCE).unwrap();
        for case in cases(&qemu.mailbox, PATIENCE).unwrap() {
            case.check(&qemu.mailbox, PATIENCE).unwrap();
        }
    }
}

#[test]
fn ports_and_halts_reach_the_machine() {
    let Some(qemu) = quiet("ports and halts", 1) else { return };
    let order = |op, args: &[u64]| qemu.mailbox.order(0, op, args, PATIENCE).unwrap();
    // The CMOS index and data ports of the PC: register 0x50 of the RAM keeps what is written.
    order(Op::Out, &[1, 0x70, 0x50, 1]);
    order(Op::Out, &[3, 0x71, 0xa5, 1]);
    assert!(matches!(order(Op::In, &[2, 0x71, 1]), Outcome::Done([0xa5, ..])));
    let ticks = qemu.mailbox.counters(0).unwrap().get(Counter::Ticks);
    order(Op::Hlt, &[4]);
    assert!(qemu.mailbox.counters(0).unwrap().get(Counter::Ticks) - ticks >= 4);
    let Outcome::Done(leaf) = order(Op::Cpuid, &[2, 0]) else { panic!("cpuid faulted") };
    assert!(leaf[0] >= 1 && leaf[1] != 0 && leaf[1] >> 32 == 0);
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
    qemu.mailbox.order(0, Op::Spin, &[10], PATIENCE).unwrap();
    let ipi = qemu.mailbox.order(0, Op::Ipi, &[1, 1], PATIENCE).unwrap();
    assert_eq!(ipi, Outcome::TimedOut);
    assert!(qemu.mailbox.counters(1).unwrap().since(&before).is_empty());
}
