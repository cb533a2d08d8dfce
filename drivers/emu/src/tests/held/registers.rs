//! Moves to and from registers, with each verdict.

use iced_x86::code_asm::*;
use vmtree_api::ErrorKind;
use vmtree_api::events::{Detail, EventKind, Inject, Move, Verdict, Watch, Way};
use vmtree_api::x86::Reg;

use super::super::Bench;
use super::{every, one, word};

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
    type Read = (EventKind, fn(&mut CodeAssembler), u64);
    let reads: [Read; 7] = [
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
