//! Interrupts, breakpoints, steps, and the kinds of single instructions, with each verdict.

use iced_x86::code_asm::*;
use vmtree_api::events::{DescriptorTable, Detail, EventKind, Inject, InterruptType, Verdict, Watch, Way};
use vmtree_api::x86::Reg;
use vmtree_api::{ErrorKind, Gva};

use super::super::{Bench, CODE};
use super::{every, one, word};

fn int80(a: &mut CodeAssembler) {
    a.int(32).unwrap();
    a.inc(rbx).unwrap();
}

#[test]
fn an_interrupt_is_delivered_swallowed_or_replaced() {
    for (verdict, handled, went_on) in [
        (Verdict::Continue, 32, 0),
        (Verdict::Deny, 0, 1),
        (Verdict::Inject(Inject::PageFault { address: Gva(0x1234), error: 0 }), 14, 0),
        (word(Reg::Rbx, 7), 32, 7),
    ] {
        one(every(EventKind::Interrupt), int80, verdict.clone(), |bench, event| {
            let Detail::Interrupt { vector, kind, error, cr2: address } = event.detail else { panic!() };
            assert_eq!((vector, kind), (Some(32), InterruptType::SoftwareInterrupt));
            assert_eq!((error, address, event.rip), (None, None, CODE));
            assert_eq!((bench.regs().gpr[15], bench.regs().gpr[3]), (handled, went_on), "{verdict:?}");
        });
    }
    let mut bench = Bench::watched(every(EventKind::Interrupt), int80);
    bench.held();
    bench.refused(Verdict::Value(1), ErrorKind::Invalid);
}

#[test]
fn a_denied_fault_is_tried_again_and_a_denied_irq_is_out_of_service() {
    let mut bench = Bench::watched(every(EventKind::Interrupt), |a| {
        a.mov(rax, qword_ptr(0x40_0000)).unwrap();
    });
    let entry = bench.word(0x3010);
    bench.put(0x3010, 0);
    for round in 0..3 {
        let Detail::Interrupt { vector: Some(14), kind, error: Some(0), cr2: Some(0x40_0000) } =
            bench.held().detail
        else {
            panic!()
        };
        assert_eq!(kind, InterruptType::HardwareException);
        if round == 2 {
            bench.put(0x3010, entry);
        }
        bench.answer(Verdict::Deny);
    }
    bench.run();

    let mut bench = Bench::watched(every(EventKind::Interrupt), |a| {
        a.sti().unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
    });
    bench.state.world.apics[0].write(0xf0, 0x1ff, 0);
    for _ in 0..2 {
        bench.state.world.apics[0].raise(0x40);
        let Detail::Interrupt { vector: Some(0x40), kind: InterruptType::External, .. } = bench.held().detail
        else {
            panic!()
        };
        bench.answer(Verdict::Deny);
    }
    bench.run();
    assert_eq!(bench.state.world.apics[0].ppr(), 0);
}

#[test]
fn a_breakpoint_is_seen_before_its_exception() {
    let code = |a: &mut CodeAssembler| {
        a.int3().unwrap();
        a.inc(rbx).unwrap();
    };
    for (verdict, handled, went_on) in [
        (Verdict::Continue, 3, 0),
        (Verdict::Deny, 0, 1),
        (word(Reg::Rip, CODE + 1), 0, 1),
        (Verdict::Inject(Inject::Exception { vector: 1, error: None }), 1, 0),
    ] {
        one(every(EventKind::Breakpoint), code, verdict, |bench, event| {
            assert_eq!(event.detail, Detail::Breakpoint { gpa: Some(vmtree_api::Gpa(CODE)), len: 1 });
            assert_eq!((bench.regs().gpr[15], bench.regs().gpr[3]), (handled, went_on));
        });
    }
    // Then the interrupt that it makes is an event of its own.
    let mut bench = Bench::watched(every(EventKind::Breakpoint), code);
    bench.watch(&[every(EventKind::Breakpoint), every(EventKind::Interrupt)]);
    bench.handler(3, 0, 0, |a| a.hlt().unwrap());
    assert_eq!(bench.held().kind, EventKind::Breakpoint);
    bench.answer(Verdict::Continue);
    let event = bench.held();
    assert!(matches!(
        event.detail,
        Detail::Interrupt { vector: Some(3), kind: InterruptType::SoftwareException, .. }
    ));
    bench.answer(Verdict::Continue);
    bench.run();
    assert!(bench.event().is_none());
}

#[test]
fn single_steps_are_reported_after_each_instruction() {
    let mut bench = Bench::watched(every(EventKind::SingleStep), |a| {
        a.nop().unwrap();
        a.int(32).unwrap();
    });
    bench.handler(32, 0, 0, |a| {
        a.nop().unwrap();
        a.hlt().unwrap();
    });
    let handler = super::super::HANDLERS + 32 * 0x100;
    for rip in [CODE + 1, handler, handler + 1] {
        let event = bench.held();
        assert_eq!((event.rip, event.detail), (rip, Detail::SingleStep));
        bench.refused(Verdict::Deny, ErrorKind::Invalid);
        bench.refused(Verdict::Value(1), ErrorKind::Invalid);
        bench.answer(Verdict::Continue);
    }
    assert_eq!(bench.state.world.now(), 30);
    bench.held();
    bench.answer(Verdict::Inject(Inject::Exception { vector: 3, error: None }));
    bench.handler(3, 0, 0, |a| a.hlt().unwrap());
    bench.watch(&[]);
    bench.run();
    assert_eq!(bench.word(bench.state.vcpus[0].cpu.regs.gpr[4]), handler + 2);
}

#[test]
fn cpuid_ports_tables_and_guest_requests() {
    let result = 1 | 2 << 32 | 3 << 64 | 4 << 96;
    one(
        every(EventKind::Cpuid),
        |a| a.cpuid().unwrap(),
        Verdict::Value(result),
        |bench, event| {
            assert_eq!(event.detail, Detail::Cpuid { leaf: 0, subleaf: 0 });
            assert_eq!(bench.regs().gpr[..4], [1, 3, 4, 2]);
        },
    );
    let read = |a: &mut CodeAssembler| a.in_(al, 0xe9).unwrap();
    for (verdict, got) in [(Verdict::Continue, 0xe9), (Verdict::Value(0x12), 0x12)] {
        one(every(EventKind::Io), read, verdict, |bench, event| {
            assert_eq!(event.detail, Detail::Io { port: 0xe9, bytes: 1, value: None });
            assert_eq!(bench.regs().gpr[0] & 0xff, got);
        });
    }
    let write = |a: &mut CodeAssembler| a.out(0xe9, al).unwrap();
    for verdict in [Verdict::Continue, Verdict::Deny, Verdict::Value(7)] {
        one(every(EventKind::Io), write, verdict, |_, event| {
            assert_eq!((event.way(), event.kind), (Way::To, EventKind::Io));
        });
    }
    let mut bench = Bench::watched(every(EventKind::Io), read);
    bench.held();
    bench.refused(Verdict::Deny, ErrorKind::Invalid);
    bench.refused(Verdict::Value(0x100), ErrorKind::OutOfRange);

    let lidt = |a: &mut CodeAssembler| a.lidt(ptr(0x20_0000)).unwrap();
    for (verdict, limit) in [(Verdict::Continue, 0), (Verdict::Deny, 0xfff)] {
        one(every(EventKind::Descriptor), lidt, verdict, |bench, event| {
            let way = Way::To;
            assert_eq!(event.detail, Detail::Descriptor { table: DescriptorTable::Idtr, way });
            assert_eq!(bench.regs().idtr.limit, limit);
        });
    }
    one(
        every(EventKind::Descriptor),
        |a| a.str(ebx).unwrap(),
        Verdict::Continue,
        |bench, event| {
            assert_eq!(event.detail, Detail::Descriptor { table: DescriptorTable::Tr, way: Way::From });
            assert_eq!(bench.regs().gpr[3], 0x28);
        },
    );
    for (verdict, rax_after) in
        [(Verdict::Continue, 1000_u64.wrapping_neg()), (Verdict::Deny, 0), (Verdict::Value(9), 9)]
    {
        one(
            every(EventKind::GuestRequest),
            |a| a.vmcall().unwrap(),
            verdict,
            |bench, _| {
                assert_eq!(bench.regs().gpr[0], rax_after);
            },
        );
    }
}

#[test]
fn a_full_queue_stops_the_vcpu_and_loses_nothing() {
    let mut bench = Bench::watched(Watch { hold: false, ..every(EventKind::Cpuid) }, |a| {
        a.mov(r14d, 10_000).unwrap();
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.cpuid().unwrap();
        a.dec(r14).unwrap();
        a.jnz(again).unwrap();
    });
    while bench.state.step(0) == crate::cpu::Stepped::Ran {}
    assert_eq!(bench.state.step(0), crate::cpu::Stepped::Held);
    let now = bench.state.world.now();
    assert_eq!(bench.state.step(0), crate::cpu::Stepped::Held);
    assert_eq!(bench.state.world.now(), now);
    let first = std::iter::from_fn(|| bench.event()).count();
    assert_eq!(first, crate::events::queue::LENGTH);
    bench.run();
    assert_eq!(first + std::iter::from_fn(|| bench.event()).count(), 10_000);

    // The report of a step waits for room too.
    let mut bench = Bench::watched(Watch { hold: false, ..every(EventKind::SingleStep) }, |a| {
        a.mov(r14d, 5_000).unwrap();
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.dec(r14).unwrap();
        a.jnz(again).unwrap();
    });
    let mut seen = 0;
    while bench.state.vcpus[0].activity == crate::cpu::vcpu::Activity::Running {
        bench.state.step(0);
        if bench.state.vcpus[0].trap.stands() {
            seen += std::iter::from_fn(|| bench.event()).count();
        }
    }
    assert_eq!(seen + std::iter::from_fn(|| bench.event()).count(), 10_002);
}
