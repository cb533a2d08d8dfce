//! Nobody starves: neither the guest by its visitors, nor a visitor by the guest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use vmtree_api::x86::Reg;
use vmtree_api::{Cancel, Driver, RegValue};

use crate::ALONE;
use crate::bench::{V0, count, open, regs, word};

const COUNT: u64 = 0x20_0000;

/// How often the guest counted in `time` while `visitors` threads did `visit` without a break.
fn counted(driver: &dyn Driver, visitors: u32, time: Duration, visit: impl Fn() + Sync) -> u64 {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..visitors {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    visit();
                }
            });
        }
        std::thread::sleep(time / 10);
        let before = word(driver, COUNT);
        std::thread::sleep(time);
        let counted = word(driver, COUNT) - before;
        stop.store(true, Ordering::Relaxed);
        counted
    })
}

#[test]
fn many_visitors_at_once_let_the_guest_go_on() {
    let _alone = ALONE.lock();
    let driver = open(1, count);
    for visitors in [1, 2, 4, 8] {
        // A starving guest counts next to nothing however long it is looked at; a busy host just takes longer.
        let begun = Instant::now();
        let mut sum = 0;
        while sum <= 10_000 && begun.elapsed() < Duration::from_secs(10) {
            sum += counted(&*driver, visitors, Duration::from_millis(300), || {
                regs(&*driver, V0);
            });
        }
        eprintln!("{visitors} visitors: the guest counted {sum} in {:?}", begun.elapsed());
        assert!(sum > 10_000, "{visitors} visitors: only {sum}");
    }
}

/// Enables the APIC at RBX, and starts its timer: interrupt 0x40 with `mode`, after `counts` of 10 ns.
fn timer(a: &mut CodeAssembler, mode: u32, counts: u32) {
    a.mov(rbx, 0xfee0_0000_u64).unwrap();
    a.mov(dword_ptr(rbx + 0xf0), 0x1ff).unwrap();
    a.mov(dword_ptr(rbx + 0x320), 0x40 | mode).unwrap();
    a.mov(dword_ptr(rbx + 0x3e0), 0xb).unwrap();
    a.mov(dword_ptr(rbx + 0x380), counts).unwrap();
}

/// Sleeps for ever, and counts in memory the interrupts of a timer of 20 ms.
fn ticking(a: &mut CodeAssembler) {
    let (mut begin, mut handler, mut again) = (a.create_label(), a.create_label(), a.create_label());
    a.jmp(begin).unwrap();
    a.set_label(&mut handler).unwrap();
    a.inc(qword_ptr(rcx)).unwrap();
    a.mov(dword_ptr(rbx + 0xb0), 0).unwrap();
    a.iretq().unwrap();
    a.set_label(&mut begin).unwrap();
    a.mov(rcx, COUNT).unwrap();
    a.lea(rax, ptr(handler)).unwrap();
    // The gate of vector 0x40 at 0x201400; the table's register from 0x202000.
    a.mov(word_ptr(rcx + 0x1400), ax).unwrap();
    a.mov(dword_ptr(rcx + 0x1402), 0x8e00_0008_u32 as i32).unwrap();
    a.shr(rax, 16).unwrap();
    a.mov(word_ptr(rcx + 0x1406), ax).unwrap();
    a.mov(word_ptr(rcx + 0x2000), 0xfff).unwrap();
    a.lea(rax, ptr(rcx + 0x1000)).unwrap();
    a.mov(qword_ptr(rcx + 0x2002), rax).unwrap();
    a.lidt(ptr(rcx + 0x2000)).unwrap();
    timer(a, 1 << 17, 2_000_000);
    a.sti().unwrap();
    a.set_label(&mut again).unwrap();
    a.hlt().unwrap();
    a.jmp(again).unwrap();
}

#[test]
fn writes_and_pauses_do_not_put_off_a_timer() {
    let _alone = ALONE.lock();
    let driver = open(1, ticking);
    let time = Duration::from_millis(400);
    let alone = counted(&*driver, 0, time, || ());
    let written = counted(&*driver, 1, time, || {
        driver.registers().unwrap().write(V0, &[(Reg::R15.id(), RegValue::Word(1))]).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    });
    let paused = counted(&*driver, 1, time, || {
        driver.execution().unwrap().pause().unwrap().resume().unwrap();
        std::thread::sleep(Duration::from_millis(1));
    });
    eprintln!("ticks in 400 ms: {alone} alone, {written} with writes, {paused} with pauses");
    // It would be 20 on an idle host; a guest that starves gets none at all.
    assert!(alone.min(written).min(paused) >= 3);
}

#[test]
fn a_fast_timer_that_wakes_nobody_costs_nothing() {
    let _alone = ALONE.lock();
    // vCPU 0 sleeps with interrupts on and a timer of seconds; vCPU 1 with interrupts off and a timer of 20 ns.
    let driver = open(2, |a| {
        let (mut other, mut sleep) = (a.create_label(), a.create_label());
        a.test(rdi, rdi).unwrap();
        a.jne(other).unwrap();
        timer(a, 0, 400_000_000);
        a.sti().unwrap();
        a.jmp(sleep).unwrap();
        a.set_label(&mut other).unwrap();
        timer(a, 1 << 17, 2);
        a.set_label(&mut sleep).unwrap();
        a.hlt().unwrap();
        a.jmp(sleep).unwrap();
    });
    std::thread::sleep(Duration::from_millis(50));
    let before = crate::machine_time();
    std::thread::sleep(Duration::from_millis(500));
    let spent = crate::machine_time() - before;
    assert!(spent <= Duration::from_millis(20), "{spent:?}");
    // A step jumps 4 s ahead at once, not in 200 million rounds.
    let _pause = driver.execution().unwrap().pause().unwrap();
    let begun = Instant::now();
    driver.registers().unwrap().read(V0).unwrap();
    let stepped = driver.execution().unwrap().step(V0, 1, &Cancel::default());
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?} for {stepped:?}", begun.elapsed());
}
