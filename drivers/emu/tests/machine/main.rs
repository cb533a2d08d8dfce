//! The machine as a driver: opened by a SOURCE, looked at and controlled from other threads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;
mod speed;
mod starving;

use std::sync::Arc;
use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use parking_lot::Mutex;
use vmtree_api::x86::{Reg, Segment};
use vmtree_api::{
    Cancel, Driver, ErrorKind, Gpa, Host, NoHost, Pace, RegValue, RegisterSet, RunState, Source, VcpuId,
};

use bench::{CODE, V0, count, open, open_with, regs, word};

/// CPU time of this process's machine threads so far.
fn machine_time() -> Duration {
    let mut ticks = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let Ok(text) = std::fs::read_to_string(task.path().join("stat")) else { continue };
        if text.contains("(vmtree-emu)") {
            let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
            ticks += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        }
    }
    Duration::from_millis(ticks * 10)
}

/// The tests of this file that count threads or CPU time must not run beside others.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn it_starts_as_documented() {
    let _alone = ALONE.lock();
    let driver = open(2, |a| a.hlt().unwrap());
    assert_eq!(driver.facts().vcpus, Some(2));
    let pause = driver.execution().unwrap().pause().unwrap();
    for id in 0..2 {
        let regs = regs(&*driver, VcpuId(id));
        assert_eq!((regs.gpr[7], regs.gpr[6]), (u64::from(id), 2));
        assert_eq!(regs.gpr[4], 0x8_0000 - u64::from(id) * 0x1000);
        assert_eq!((regs.cr0, regs.cr3, regs.cr4, regs.efer), (0x8005_0033, 0x1000, 0x620, 0xd01));
        assert_eq!((regs.cs.selector, regs.cs.attr, regs.ss.attr), (8, 0xa09b, 0xc093));
        assert_eq!((regs.gdtr.base, regs.gdtr.limit, regs.idtr.limit), (0x7000, 0x17, 0));
        assert_eq!(regs.apic_base, if id == 0 { 0xfee0_0900 } else { 0xfee0_0800 });
    }
    drop(pause);
}

#[test]
fn pauses_count_and_stop_every_instruction() {
    let _alone = ALONE.lock();
    let driver = open(2, count);
    let execution = driver.execution().unwrap();
    while word(&*driver, 0x20_0000) == 0 {
        std::thread::yield_now();
    }
    assert_eq!(execution.state().unwrap(), RunState::Running);
    let first = execution.pause().unwrap();
    let second = execution.pause().unwrap();
    let stands = |driver: &dyn Driver| {
        let before = regs(driver, V0);
        std::thread::sleep(Duration::from_millis(20));
        before == regs(driver, V0)
    };
    assert!(stands(&*driver));
    first.resume().unwrap();
    assert_eq!(execution.state().unwrap(), RunState::Paused);
    assert!(stands(&*driver), "the other pause still holds");
    execution.force_resume().unwrap();
    assert_eq!(execution.state().unwrap(), RunState::Running);
    assert!(!stands(&*driver));
    let third = execution.pause().unwrap();
    second.resume().unwrap();
    assert_eq!(execution.state().unwrap(), RunState::Paused, "a void pause ends nothing");
    third.resume().unwrap();
    assert!(!stands(&*driver));
}

#[test]
fn steps_are_counted_and_move_one_vcpu() {
    let _alone = ALONE.lock();
    let driver = open(2, count);
    let execution = driver.execution().unwrap();
    let error = execution.step(V0, 1, &Cancel::default()).unwrap_err();
    assert_eq!((error.kind(), error.to_string().contains("pause first")), (ErrorKind::Busy, true));
    let _pause = execution.pause().unwrap();
    let (before, other) = (regs(&*driver, V0), regs(&*driver, VcpuId(1)));
    assert_eq!(execution.step(V0, 3000, &Cancel::default()).unwrap(), 3000);
    let after = regs(&*driver, V0);
    assert!(after.gpr[0].abs_diff(before.gpr[0] + 1000) <= 1);
    assert_eq!(after.tsc, before.tsc + 30_000);
    assert_eq!(regs(&*driver, VcpuId(1)).gpr, other.gpr);
    assert_eq!(execution.step(V0, 0, &Cancel::default()).unwrap(), 0);
    let cancel = Cancel::default();
    cancel.raise();
    assert_eq!(execution.step(V0, u64::MAX, &cancel).unwrap(), 0);
    let error = execution.step(VcpuId(2), 1, &Cancel::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn a_long_step_can_be_cancelled_and_lets_others_in() {
    let _alone = ALONE.lock();
    let driver = open(1, count);
    let execution = driver.execution().unwrap();
    let _pause = execution.pause().unwrap();
    let cancel = Cancel::default();
    std::thread::scope(|scope| {
        let steps = scope.spawn(|| execution.step(V0, u64::MAX, &cancel).unwrap());
        let before = regs(&*driver, V0).gpr[0];
        while regs(&*driver, V0).gpr[0] == before {
            std::thread::yield_now();
        }
        cancel.raise();
        assert!(steps.join().unwrap() > 0);
    });
}

#[test]
fn a_step_of_a_vcpu_that_sleeps_for_good_ends() {
    let _alone = ALONE.lock();
    let driver = open(1, |a| {
        a.nop().unwrap();
        a.hlt().unwrap();
    });
    let execution = driver.execution().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let _pause = execution.pause().unwrap();
    assert_eq!(execution.step(V0, 10, &Cancel::default()).unwrap(), 0);
}

#[test]
fn registers_are_written_together_or_not_at_all() {
    let _alone = ALONE.lock();
    let driver = open(1, count);
    let _pause = driver.execution().unwrap().pause().unwrap();
    let registers = driver.registers().unwrap();
    assert_eq!(registers.pace(), Pace::Prompt);
    assert!(registers.offers().iter().all(|offer| offer.writable));
    let w = |reg: Reg, value| (reg.id(), RegValue::Word(value));
    registers.write(V0, &[w(Reg::Rax, 7), w(Reg::Rflags, 0x200), w(Reg::Cr8, 5), w(Reg::Tsc, 99)]).unwrap();
    let after = regs(&*driver, V0);
    assert_eq!((after.gpr[0], after.rflags, after.cr8, after.tsc), (7, 0x202, 5, 99));

    let flat = |attr| Segment { selector: 8, base: 0, limit: u32::MAX, attr };
    let s = |reg: Reg, value| (reg.id(), RegValue::Segment(value));
    let bad = [
        (w(Reg::Rip, 1 << 47), "rip: the address is not canonical"),
        (w(Reg::Rflags, 1 << 3), "rflags: bits 3"),
        (w(Reg::Rflags, 1 << 17), "rflags: VM"),
        (w(Reg::Cr0, 0x8000_0033 | 1 << 28), "cr0:"),
        (w(Reg::Cr0, 0x33), "cr0: PE and PG"),
        (w(Reg::Cr3, 1 << 63), "cr3: bits 63:52"),
        (w(Reg::Cr4, 0x600), "cr4: PAE"),
        (w(Reg::Cr8, 16), "cr8: it is 0 to 15"),
        (w(Reg::Xcr0, 0), "xcr0:"),
        (w(Reg::Dr7, 1 << 32), "dr7: bits 63:32"),
        (w(Reg::Efer, 0xd00 & !0x400), "efer: LMA"),
        (w(Reg::Efer, 0x401), "efer: LME"),
        (w(Reg::Efer, 0xd03), "efer: it has only"),
        (w(Reg::Lstar, 1 << 62), "lstar:"),
        (w(Reg::Pat, 2), "pat:"),
        (w(Reg::ApicBase, 0), "apic_base: only EN"),
        (s(Reg::Cs, flat(0xc09b)), "cs: it must be a present 64-bit"),
        (s(Reg::Cs, flat(0xa0fb)), "cs: its DPL"),
        (s(Reg::Ss, flat(0xc0f3)), "cs: its DPL"),
        (s(Reg::Ds, Segment { limit: 0x10_0000, attr: 0x93, ..Segment::default() }), "ds: limit and G"),
        (s(Reg::Tr, flat(0xa09b)), "tr: S"),
    ];
    for (change, told) in bad {
        let error = registers.write(V0, &[w(Reg::Rax, 8), change]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(told), "{told}: {error}");
        assert_eq!(regs(&*driver, V0), after, "{told}: nothing is changed");
    }
    // What is read can be written back, all of it.
    let RegisterSet::X86_64(_) = registers.read(V0).unwrap() else { panic!() };
    let set = registers.read(V0).unwrap();
    let all: Vec<_> = registers.offers().iter().map(|offer| (offer.id, set.get(offer.id).unwrap())).collect();
    registers.write(V0, &all).unwrap();
    assert_eq!(regs(&*driver, V0), after);
    // Another privilege level takes CS and SS together.
    registers.write(V0, &[s(Reg::Cs, flat(0xa0fb)), s(Reg::Ss, flat(0xc0f3))]).unwrap();
    assert_eq!(registers.read(VcpuId(1)).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn msrs_are_had_by_index() {
    let _alone = ALONE.lock();
    let driver = open(1, count);
    let msrs = driver.registers().unwrap().msrs().unwrap();
    assert_eq!(msrs.read(V0, 0xc000_0080).unwrap(), 0xd01);
    msrs.write(V0, 0xc000_0082, 0xffff_8000_0000_1000).unwrap();
    assert_eq!(regs(&*driver, V0).lstar, 0xffff_8000_0000_1000);
    assert_eq!(msrs.read(V0, 0xc000_0082).unwrap(), 0xffff_8000_0000_1000);
    assert_eq!(msrs.read(V0, 0x1234).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(msrs.write(V0, 0x1234, 0).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(msrs.write(V0, 0x277, 2).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn a_snapshot_of_a_busy_machine_is_quick() {
    let _alone = ALONE.lock();
    let driver = open(2, count);
    let time = |index: u32| {
        let start = Instant::now();
        let regs = regs(&*driver, VcpuId(index % 2));
        assert!((CODE..CODE + 0x100).contains(&regs.rip));
        start.elapsed()
    };
    // Each finds the machine running: it had time to go on since the last one.
    let spaced = |index| {
        std::thread::sleep(Duration::from_micros(300));
        time(index)
    };
    let before = word(&*driver, 0x20_0000);
    for (name, mut times) in [
        ("apart", (0..1000).map(spaced).collect::<Vec<_>>()),
        ("in a row", (0..50_000).map(time).collect::<Vec<_>>()),
    ] {
        times.sort_unstable();
        let (median, most) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        eprintln!("snapshot of a busy machine, {name}: median {median:?}, 99 % {most:?}");
        assert!(median < Duration::from_millis(50));
    }
    assert_ne!(word(&*driver, 0x20_0000), before, "the guest goes on meanwhile");
}

#[test]
fn an_idle_machine_costs_next_to_nothing() {
    let _alone = ALONE.lock();
    // A periodic timer of 10 ms.
    let driver = open(4, |a| {
        a.mov(rbx, 0xfee0_0000_u64).unwrap();
        a.mov(dword_ptr(rbx + 0xf0), 0x1ff).unwrap();
        a.mov(dword_ptr(rbx + 0x320), 0x2_0040).unwrap();
        a.mov(dword_ptr(rbx + 0x3e0), 0xb).unwrap();
        a.mov(rcx, 0x20_0000_u64).unwrap();
        // The gate of vector 0x40: code at 0x200100, with a few instructions.
        a.mov(rax, 0x20_8e00_0008_0100_u64).unwrap();
        a.mov(qword_ptr(rcx + 0x400), rax).unwrap();
        a.mov(rax, 0xcf48_0000_00b0_83c7_u64).unwrap();
        a.mov(word_ptr(rcx + 0x1000), 0x1000 - 1).unwrap();
        a.mov(qword_ptr(rcx + 0x1002), rcx).unwrap();
        a.lidt(ptr(rcx + 0x1000)).unwrap();
        // inc r15; mov dword [rbx + 0xb0], 0; iretq
        for (at, byte) in
            [0x49, 0xff, 0xc7, 0xc7, 0x83, 0xb0, 0, 0, 0, 0, 0, 0, 0, 0x48, 0xcf].iter().enumerate()
        {
            a.mov(byte_ptr(rcx + 0x100 + at as i32), *byte).unwrap();
        }
        a.mov(dword_ptr(rbx + 0x380), 1_000_000).unwrap();
        a.sti().unwrap();
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.hlt().unwrap();
        a.jmp(again).unwrap();
    });
    std::thread::sleep(Duration::from_millis(50));
    let (before, ticks) = (machine_time(), regs(&*driver, V0).gpr[15]);
    std::thread::sleep(Duration::from_secs(1));
    let (spent, ticks) = (machine_time() - before, regs(&*driver, V0).gpr[15] - ticks);
    eprintln!("idle: {spent:?} of a second, {ticks} timer interrupts");
    assert!(spent <= Duration::from_millis(20), "{spent:?}");
    assert!((20..=101).contains(&ticks), "virtual time keeps pace: {ticks}");
}

#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Host for Told {
    fn ended(&self, why: &str) {
        self.0.lock().push(why.to_owned());
    }
}

#[test]
fn a_triple_fault_ends_the_machine() {
    let _alone = ALONE.lock();
    let told = Arc::new(Told::default());
    let driver = open_with(told.clone(), 2, |a| a.ud2().unwrap());
    let deadline = Instant::now() + Duration::from_secs(5);
    while told.0.lock().is_empty() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(*told.0.lock(), [format!("triple fault on vCPU 0 at rip {CODE:#x}")]);
    assert_eq!(driver.registers().unwrap().read(V0).unwrap_err().kind(), ErrorKind::Gone);
    assert_eq!(driver.execution().unwrap().pause().unwrap_err().kind(), ErrorKind::Gone);
    assert_eq!(driver.memory().read(Gpa(0), &mut [0]).unwrap_err().kind(), ErrorKind::Gone);
}

#[test]
fn dropping_it_ends_its_thread_whatever_it_does() {
    let _alone = ALONE.lock();
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        tasks
            .filter(|task| {
                std::fs::read_to_string(task.path().join("comm"))
                    .is_ok_and(|name| name.trim() == "vmtree-emu")
            })
            .count()
    };
    let busy = open(2, count);
    let idle = open(2, |a| a.hlt().unwrap());
    let paused = open(2, count);
    let pause = paused.execution().unwrap().pause().unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    // A thread gives itself its name.
    while threads() != 3 {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    drop((busy, idle, paused));
    assert_eq!(threads(), 0);
    pause.resume().unwrap();
}

#[test]
fn two_machines_after_as_many_steps_are_equal() {
    let _alone = ALONE.lock();
    let run = || {
        let driver = open(2, count);
        let execution = driver.execution().unwrap();
        let _pause = execution.pause().unwrap();
        // Before the pause they ran for another while each; from a known state on they are equal.
        let state = [
            (Reg::Rip.id(), RegValue::Word(CODE)),
            (Reg::Rax.id(), RegValue::Word(0)),
            (Reg::Tsc.id(), RegValue::Word(0)),
        ];
        driver.registers().unwrap().write(V0, &state).unwrap();
        execution.step(V0, 12_345, &Cancel::default()).unwrap();
        regs(&*driver, V0)
    };
    assert_eq!(run(), run());
}

#[test]
fn bad_sources_are_refused_in_a_line() {
    let open = |options: &[(&str, &str)]| {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        vmtree_emu::open(Source::new("emu", "", options), Arc::new(NoHost))
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    assert!(open(&[("image", "/nonexistent.elf")]).contains("/nonexistent.elf"));
    assert!(open(&[("image", "/proc/self/status")]).contains("no ELF"));
    assert!(open(&[("ram", "1M")]).contains("8M"));
    assert!(vmtree_emu::checks().iter().all(|check| check.found.is_ok()));
}
