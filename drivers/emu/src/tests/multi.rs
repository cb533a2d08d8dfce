//! Several vCPUs: turns, interprocessor interrupts, and that a run can be repeated.

use std::sync::atomic::AtomicU64;

use iced_x86::code_asm::*;

use super::Bench;
use crate::cpu::vcpu::Activity;
use crate::machine::Went;
use crate::ram::APIC_BASE;

/// vCPUs that race: each adds to a shared word and notes what it saw, until it has seen enough, then halts.
fn race(vcpus: u32, seed: u64) -> Bench {
    Bench::many(vcpus, seed, |a| {
        let mut again = a.create_label();
        a.mov(rbx, 0x20_0000_u64).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(eax, 1).unwrap();
        a.lock().xadd(qword_ptr(rbx), rax).unwrap();
        a.imul_3(rsi, rsi, 31).unwrap();
        a.add(rsi, rax).unwrap();
        a.inc(r15).unwrap();
        a.cmp(r15, 3000).unwrap();
        a.jne(again).unwrap();
        a.rdtsc().unwrap();
        a.hlt().unwrap();
    })
}

/// Runs until all are idle. With `called`, someone wants in all the time.
fn finish(bench: &mut Bench, called: bool) {
    let arrived = AtomicU64::new(u64::from(called));
    loop {
        match bench.state.go(&arrived) {
            Went::Idle => return,
            Went::Called => assert!(called),
            Went::Dead(index) => panic!("vCPU {index}"),
        }
    }
}

fn result(bench: &Bench) -> Vec<[u64; 16]> {
    bench.state.vcpus.iter().map(|vcpu| vcpu.cpu.regs.gpr).collect()
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed, called| {
        let mut bench = race(3, seed);
        finish(&mut bench, called);
        assert_eq!(bench.word(0x20_0000), 9000);
        (result(&bench), bench.state.world.now())
    };
    assert_eq!(run(1, false), run(1, false));
    assert_eq!(run(1, false), run(1, true), "visitors change nothing");
    assert_ne!(run(1, false).0, run(2, false).0, "another seed mixes them differently");
}

#[test]
fn an_interprocessor_interrupt_wakes_another_vcpu() {
    let mut bench = Bench::many(3, 0, |a| {
        let mut waits = a.create_label();
        a.mov(rbx, APIC_BASE).unwrap();
        a.mov(dword_ptr(rbx + 0xf0), 0x1ff).unwrap();
        a.sti().unwrap();
        a.test(rdi, rdi).unwrap();
        a.jne(waits).unwrap();
        // To vCPU 2 alone, then to all but itself.
        a.mov(ecx, 20_000).unwrap();
        let mut delay = a.create_label();
        a.set_label(&mut delay).unwrap();
        a.dec(ecx).unwrap();
        a.jne(delay).unwrap();
        a.mov(dword_ptr(rbx + 0x310), 2 << 24).unwrap();
        a.mov(dword_ptr(rbx + 0x300), 0x51).unwrap();
        a.mov(dword_ptr(rbx + 0x300), 0xc_0052).unwrap();
        a.set_label(&mut waits).unwrap();
        a.hlt().unwrap();
        a.jmp(waits).unwrap();
    });
    for (vector, register) in [(0x51, r14), (0x52, r15)] {
        bench.handler(vector, 0, 0, |a| {
            a.inc(register).unwrap();
            a.mov(dword_ptr(rbx + 0xb0), 0).unwrap();
            a.iretq().unwrap();
        });
    }
    finish(&mut bench, false);
    let seen: Vec<(u64, u64)> = result(&bench).iter().map(|gpr| (gpr[14], gpr[15])).collect();
    assert_eq!(seen, [(0, 0), (0, 1), (1, 1)]);
    assert!(bench.state.vcpus.iter().all(|vcpu| vcpu.activity == Activity::Halted));
}

#[test]
fn a_lowest_priority_interrupt_goes_to_one_vcpu() {
    for (busy, chosen) in [(None, 1), (Some(1), 2)] {
        let mut bench = Bench::many(3, 0, |a| a.hlt().unwrap());
        let world = &mut bench.state.world;
        let mut write =
            |vcpu, offset, value: u32| world.write(vcpu, APIC_BASE + offset, &value.to_le_bytes());
        for vcpu in 0..3 {
            write(vcpu, 0xf0, 0x1ff);
        }
        if let Some(busy) = busy {
            write(busy, 0x80, 0x30);
        }
        // From vCPU 0 to all but itself, lowest priority, vector 0x51.
        write(0, 0x300, 0xc_0151);
        let ready: Vec<_> = bench.state.world.apics.iter().map(|apic| apic.ready().is_some()).collect();
        assert_eq!(ready, [0, 1, 2].map(|vcpu| vcpu == chosen));
    }
}
