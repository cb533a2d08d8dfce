//! Each kind in each way with each verdict.

use iced_x86::code_asm::*;
use vmtree_api::events::{
    DescriptorTable, Detail, EventKind, Inject, InterruptType, Move, Verdict, Watch, Way,
};
use vmtree_api::x86::Reg;
use vmtree_api::{ErrorKind, Gva, RegValue};

use super::super::{Bench, CODE};
use super::{every, one};

fn word(reg: Reg, value: u64) -> Verdict {
    Verdict::Set(vec![(reg.id(), RegValue::Word(value))])
}

/// A write of RAX to a register: how it is made, and how it is seen.
struct Write {
    kind: EventKind,
    code: fn(&mut CodeAssembler),
    old: u64,
    new: u64,
    other: u64,
    bad: u64,
    see: fn(&mut Bench) -> u64,
}

fn wrmsr(a: &mut CodeAssembler) {
    a.mov(ecx, 0xc000_0082_u32).unwrap();
    a.mov(rdx, rax).unwrap();
    a.shr(rdx, 32).unwrap();
    a.wrmsr().unwrap();
}

const WRITES: &[Write] = &[
    Write {
        kind: EventKind::Cr0,
        code: |a| a.mov(cr0, rax).unwrap(),
        old: 0x8005_0033,
        new: 0x8005_003b,
        other: 0x8001_0033,
        bad: 0,
        see: |bench| bench.regs().cr0,
    },
    Write {
        kind: EventKind::Cr3,
        code: |a| a.mov(cr3, rax).unwrap(),
        old: 0x1000,
        new: 0x1008,
        other: 0x1010,
        bad: 1 << 60,
        see: |bench| bench.regs().cr3,
    },
    Write {
        kind: EventKind::Cr4,
        code: |a| a.mov(cr4, rax).unwrap(),
        old: 0x620,
        new: 0x628,
        other: 0x6a0,
        bad: 0,
        see: |bench| bench.regs().cr4,
    },
    Write {
        kind: EventKind::Cr8,
        code: |a| a.mov(cr8, rax).unwrap(),
        old: 0,
        new: 5,
        other: 7,
        bad: 16,
        see: |bench| u64::from(bench.state.world.apics[0].tpr() >> 4),
    },
    Write {
        kind: EventKind::Dr,
        code: |a| a.mov(dr7, rax).unwrap(),
        old: 0x400,
        new: 0x401,
        other: 0x404,
        bad: 1 << 40,
        see: |bench| bench.regs().dr[7],
    },
    Write {
        kind: EventKind::Msr,
        code: wrmsr,
        old: 0,
        new: 0xffff_8000_0000_1000,
        other: 0xffff_8000_0000_2000,
        bad: 1 << 50,
        see: |bench| bench.regs().lstar,
    },
];

impl Write {
    fn given(&self, verdict: Verdict, became: u64, fault: bool) {
        let code = |a: &mut CodeAssembler| {
            a.mov(rax, self.new).unwrap();
            (self.code)(a);
        };
        one(every(self.kind), code, verdict.clone(), |bench, event| {
            let (Detail::Control(access) | Detail::Debug { access, .. } | Detail::Msr { access, .. }) =
                event.detail
            else {
                panic!("{event:?}")
            };
            assert_eq!(access, Move::To { old: self.old, new: self.new });
            assert_eq!((event.kind, event.way()), (self.kind, Way::To));
            assert_eq!((self.see)(bench), became, "{} {verdict:?}", self.kind);
            assert_eq!(bench.regs().gpr[15] != 0, fault, "{} {verdict:?}", self.kind);
        });
    }
}

#[test]
fn a_register_write_goes_on_is_skipped_or_replaced() {
    for write in WRITES {
        write.given(Verdict::Continue, write.new, false);
        write.given(Verdict::Step(None), write.new, false);
        write.given(Verdict::Deny, write.old, false);
        write.given(Verdict::Value(u128::from(write.other)), write.other, false);
        write.given(Verdict::Inject(Inject::Exception { vector: 13, error: Some(0) }), write.old, true);
        if write.kind != EventKind::Msr {
            write.given(word(Reg::Rax, write.other), write.other, false);
        }
    }
}

#[test]
fn a_value_that_a_register_cant_hold_is_refused_and_from_the_guest_a_fault() {
    for write in WRITES {
        let mut bench = Bench::watched(every(write.kind), |a| {
            a.mov(rax, write.bad).unwrap();
            (write.code)(a);
        });
        bench.handler(13, 0, 0, |a| {
            a.mov(r15d, 13).unwrap();
            a.hlt().unwrap();
        });
        bench.held();
        bench.refused(Verdict::Value(u128::from(write.bad)), ErrorKind::Invalid);
        bench.refused(Verdict::Value(1 << 64), ErrorKind::OutOfRange);
        bench.refused(Verdict::View(vmtree_api::ViewId(7)), ErrorKind::NotFound);
        bench.refused(Verdict::Step(Some(vmtree_api::ViewId(7))), ErrorKind::NotFound);
        bench.refused(word(Reg::Cr3, 1 << 60), ErrorKind::Invalid);
        bench.refused(Verdict::Inject(Inject::Exception { vector: 13, error: None }), ErrorKind::Invalid);
        bench.answer(Verdict::Continue);
        bench.run();
        assert_eq!((bench.regs().gpr[15], (write.see)(&mut bench)), (13, write.old), "{}", write.kind);
    }
}

#[test]
fn a_register_read_delivers_what_it_is_told() {
    let reads: [(EventKind, fn(&mut CodeAssembler), u64); 7] = [
        (EventKind::Cr0, |a| a.mov(rbx, cr0).unwrap(), 0x8005_0033),
        (EventKind::Cr0, |a| a.smsw(rbx).unwrap(), 0x8005_0033),
        (EventKind::Cr3, |a| a.mov(rbx, cr3).unwrap(), 0x1000),
        (EventKind::Cr4, |a| a.mov(rbx, cr4).unwrap(), 0x620),
        (EventKind::Cr8, |a| a.mov(rbx, cr8).unwrap(), 0),
        (EventKind::Dr, |a| a.mov(rbx, dr6).unwrap(), 0xffff_0ff0),
        (
            EventKind::Msr,
            |a| {
                a.mov(ecx, 0xc000_0080_u32).unwrap();
                a.rdmsr().unwrap();
                a.mov(rbx, rax).unwrap();
            },
            0xd01,
        ),
    ];
    for (kind, code, real) in reads {
        for (verdict, got) in [(Verdict::Continue, real), (Verdict::Value(0x77), 0x77)] {
            one(every(kind), code, verdict, |bench, event| {
                assert_eq!((event.kind, event.way()), (kind, Way::From));
                assert_eq!(bench.regs().gpr[3], got, "{kind}");
            });
        }
        let mut bench = Bench::watched(every(kind), code);
        bench.held();
        bench.refused(Verdict::Deny, ErrorKind::Invalid);
    }
}

#[test]
fn clts_and_lmsw_write_cr0() {
    for code in [|a: &mut CodeAssembler| a.clts().unwrap(), |a: &mut CodeAssembler| a.lmsw(ax).unwrap()] {
        let mut bench = Bench::watched(every(EventKind::Cr0), code);
        bench.regs().cr0 |= 8;
        bench.regs().gpr[0] = 0x31;
        assert!(matches!(bench.held().detail, Detail::Control(Move::To { old: 0x8005_003b, .. })));
        bench.answer(Verdict::Deny);
        bench.run();
        assert_eq!(bench.regs().cr0, 0x8005_003b);
    }
}

#[test]
fn filters_match_way_index_and_vcpu() {
    let code = |a: &mut CodeAssembler| {
        a.mov(rax, cr3).unwrap();
        a.mov(cr3, rax).unwrap();
        a.mov(dr0, rax).unwrap();
        a.mov(dr1, rax).unwrap();
    };
    let count = |watch: Watch| {
        let mut bench = Bench::watched(Watch { hold: false, ..watch }, code);
        bench.run();
        std::iter::from_fn(|| bench.event()).count()
    };
    let cr3_watch = every(EventKind::Cr3);
    assert_eq!(count(cr3_watch.clone()), 2);
    assert_eq!(count(Watch { way: Some(Way::To), ..cr3_watch.clone() }), 1);
    assert_eq!(count(Watch { vcpu: Some(vmtree_api::VcpuId(1)), ..cr3_watch }), 0);
    assert_eq!(count(Watch { index: Some(1), ..every(EventKind::Dr) }), 1);
    assert_eq!(count(every(EventKind::Dr)), 2);
}

#[test]
fn faults_of_privilege_come_before_the_event() {
    let mut bench = Bench::watched(every(EventKind::Cr3), |_| ());
    bench.user(|a| a.mov(cr3, rax).unwrap());
    bench.enter_user();
    bench.handler(13, 0, 0, |a| a.hlt().unwrap());
    bench.run();
    assert!(bench.event().is_none());
}

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
            assert_eq!((vector, kind), (32, InterruptType::SoftwareInterrupt));
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
        let Detail::Interrupt { vector: 14, kind, error: Some(0), cr2: Some(0x40_0000) } =
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
        let Detail::Interrupt { vector: 0x40, kind: InterruptType::External, .. } = bench.held().detail
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
        Detail::Interrupt { vector: 3, kind: InterruptType::SoftwareException, .. }
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
