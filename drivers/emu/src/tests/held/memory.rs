//! SLAT permissions: verdicts on accesses, and that stopping changes nothing else.

use iced_x86::code_asm::*;
use vmtree_api::events::{Detail, EventKind, Inject, Verdict, Watch, Way};
use vmtree_api::views::Rule;
use vmtree_api::x86::Reg;
use vmtree_api::{Access, ErrorKind, Gfn, Gpa, Gva, RegValue, ViewId};

use super::super::{Bench, CODE};
use super::page;
use crate::cpu::Stepped;

const DATA: u64 = 0x20_0000;
const RX: Access = Access::WRITE;

fn without(access: Access) -> Access {
    Access::ALL.without(access)
}

fn guarded(access: Access, code: impl FnOnce(&mut CodeAssembler)) -> Bench {
    let mut bench = Bench::new(|a| {
        code(a);
        a.hlt().unwrap();
    });
    bench.handler(14, 0, 0, |a| {
        a.pop(r14).unwrap();
        a.mov(r15, cr2).unwrap();
        a.hlt().unwrap();
    });
    bench.regs().gpr[3] = DATA;
    bench.regs().gpr[0] = 0x1122_3344_5566_7788;
    bench.rules(&[page(DATA, access)]);
    bench
}

#[test]
fn a_write_is_done_dropped_or_replaced() {
    for (verdict, word, fault) in [
        (Verdict::Continue, 0x1122_3344_5566_7788, 0),
        (Verdict::Step(None), 0x1122_3344_5566_7788, 0),
        (Verdict::Deny, 9, 0),
        (Verdict::Value(0x77), 0x77, 0),
        (Verdict::Set(vec![(Reg::Rax.id(), RegValue::Word(5))]), 5, 0),
        (Verdict::Inject(Inject::PageFault { address: Gva(0x55), error: 3 }), 9, 0x55),
    ] {
        let mut bench = guarded(without(RX), |a| {
            a.mov(qword_ptr(rbx + 8), rax).unwrap();
            a.inc(rcx).unwrap();
        });
        bench.put(DATA + 8, 9);
        let event = bench.held();
        let (gpa, gva) = (Gpa(DATA + 8), Some(Gva(DATA + 8)));
        assert_eq!(event.detail, Detail::Slat { access: Access::WRITE, gpa, gva, page_walk: false });
        bench.answer(verdict);
        bench.run();
        assert_eq!((bench.word(DATA + 8), bench.regs().gpr[15]), (word, fault));
        assert_eq!(bench.regs().gpr[1], u64::from(fault == 0), "RIP went on");
        assert!(bench.event().is_none(), "once");
    }
}

#[test]
fn a_read_delivers_what_it_is_told_or_faults() {
    for (verdict, got, fault) in [
        (Verdict::Continue, 9, (0, 0)),
        (Verdict::Value(0x77), 0x77, (0, 0)),
        (Verdict::Deny, 0x1122_3344_5566_7788, (DATA, 1)),
    ] {
        let mut bench = guarded(Access::EXECUTE, |a| a.mov(rax, qword_ptr(rbx)).unwrap());
        bench.put(DATA, 9);
        assert_eq!(bench.held().way(), Way::Read);
        bench.refused(Verdict::Value(1 << 64), ErrorKind::OutOfRange);
        bench.answer(verdict);
        bench.run();
        assert_eq!(bench.regs().gpr[0], got);
        assert_eq!((bench.regs().gpr[15], bench.regs().gpr[14]), fault);
    }
}

#[test]
fn a_fetch_goes_on_faults_or_goes_elsewhere() {
    for (verdict, got, fault) in [
        (Verdict::Continue, 1, (0, 0)),
        (Verdict::Deny, 0, (DATA, 0x11)),
        (Verdict::Set(vec![(Reg::Rip.id(), RegValue::Word(CODE + 2))]), 0, (0, 0)),
    ] {
        let mut bench = guarded(Access::READ.union(Access::WRITE), |a| a.jmp(rbx).unwrap());
        bench.code(DATA, |a| {
            a.inc(rcx).unwrap();
            a.mov(rbx, CODE + 2).unwrap();
        });
        assert!(bench.state.world.ram.store(DATA + 13, &[0xff, 0xe3]));
        let event = bench.held();
        assert_eq!((event.way(), event.rip), (Way::Execute, DATA));
        bench.refused(Verdict::Value(1), ErrorKind::Invalid);
        bench.answer(verdict);
        while bench.state.vcpus[0].trap.held.is_none()
            && matches!(bench.state.step(0), Stepped::Ran | Stepped::Held)
        {}
        while bench.state.vcpus[0].trap.held.is_some() {
            bench.answer(Verdict::Continue);
            while bench.state.step(0) == Stepped::Ran {}
        }
        assert_eq!(bench.regs().gpr[1], got);
        assert_eq!((bench.regs().gpr[15], bench.regs().gpr[14]), fault);
    }
}

#[test]
fn two_accesses_of_an_instruction_are_two_events_with_answers_of_their_own() {
    let mut bench = guarded(Access::NONE, |a| {
        a.cmpsq().unwrap();
        a.add(qword_ptr(rbx), 1).unwrap();
    });
    bench.regs().gpr[6] = DATA;
    bench.regs().gpr[7] = DATA + 8;
    bench.held();
    bench.answer(Verdict::Value(5));
    bench.held();
    bench.answer(Verdict::Value(5));
    assert_eq!(bench.held().way(), Way::Read);
    assert_eq!(bench.regs().rflags & 0x40, 0x40, "5 equals 5");
    bench.answer(Verdict::Value(41));
    assert_eq!(bench.held().way(), Way::Write);
    bench.answer(Verdict::Continue);
    bench.run();
    assert_eq!(bench.word(DATA), 42);
}

#[test]
fn a_verdict_outlives_its_rule() {
    let mut bench = guarded(without(RX), |a| a.mov(qword_ptr(rbx), rax).unwrap());
    bench.held();
    bench.answer(Verdict::Deny);
    bench.rules(&[]);
    bench.run();
    assert_eq!(bench.word(DATA), 0);

    let mut bench = Bench::watched(super::every(EventKind::Cr3), |a| a.mov(cr3, rax).unwrap());
    bench.held();
    bench.answer(Verdict::Deny);
    bench.watch(&[]);
    bench.run();
    assert_eq!(bench.regs().cr3, 0x1000);
}

#[test]
fn views_hide_a_hook() {
    let mut bench = guarded(Access::ALL, |a| {
        a.call(rbx).unwrap();
        a.mov(rdx, qword_ptr(rbx)).unwrap();
    });
    bench.code(DATA, |a| {
        a.inc(rcx).unwrap();
        a.ret().unwrap();
    });
    let clean = bench.word(DATA);
    let slat = &mut bench.state.world.slat;
    let hooks = slat.create().unwrap();
    let ram = bench.state.world.ram.clone();
    slat.remap(hooks, Gfn(DATA >> 12), vmtree_api::views::Remap::Copy, |_, now, page| {
        assert!(ram.load(now, page));
    })
    .unwrap();
    let place = slat.place(hooks.0, DATA);
    assert!(slat.store(place, &[0xcc]));
    bench.state.vcpus[0].switch(hooks.0);
    bench.watch(&[super::every(EventKind::Breakpoint)]);
    bench.rules(&[Rule { view: hooks, ..page(DATA, Access::EXECUTE) }]);
    for hits in 1..=2 {
        let event = bench.held();
        assert_eq!((event.kind, event.rip, event.view), (EventKind::Breakpoint, DATA, hooks));
        bench.answer(Verdict::Step(Some(ViewId(0))));
        let event = bench.held();
        assert_eq!((event.way(), event.view), (Way::Read, hooks), "back on the hooked view");
        assert_eq!(bench.regs().gpr[1], hits);
        bench.answer(Verdict::Step(Some(ViewId(0))));
        bench.run();
        assert_eq!(bench.regs().gpr[2], clean, "a read sees no hook");
        bench.regs().rip = CODE;
        bench.state.vcpus[0].activity = crate::cpu::vcpu::Activity::Running;
    }
}

#[test]
fn another_view_is_tried_anew_and_stays() {
    let mut bench = guarded(without(RX), |a| {
        a.mov(qword_ptr(rbx), rax).unwrap();
        a.mov(qword_ptr(rbx), rax).unwrap();
    });
    let other = bench.state.world.slat.create().unwrap();
    bench.held();
    bench.answer(Verdict::View(other));
    bench.run();
    assert_eq!((bench.state.vcpus[0].trap.view, bench.word(DATA)), (other.0, 0x1122_3344_5566_7788));
}

/// Code with every kind of access, many of them in one instruction.
fn busy(a: &mut CodeAssembler) {
    a.mov(qword_ptr(rbx), rax).unwrap();
    a.push(qword_ptr(rbx)).unwrap();
    a.pop(qword_ptr(rbx + 0xffc)).unwrap();
    a.xchg(qword_ptr(rbx + 8), rax).unwrap();
    a.lock().cmpxchg(qword_ptr(rbx + 16), rcx).unwrap();
    a.xadd(qword_ptr(rbx + 0xffb), rcx).unwrap();
    a.mov(rsi, rbx).unwrap();
    a.lea(rdi, ptr(rbx + 0xff0)).unwrap();
    a.mov(ecx, 5).unwrap();
    a.rep().movsq().unwrap();
    a.lea(rsi, ptr(rbx)).unwrap();
    a.mov(ecx, 3).unwrap();
    a.repe().cmpsb().unwrap();
    a.bts(qword_ptr(rbx), rax).unwrap();
    a.movups(xmm0, ptr(rbx + 0xff8)).unwrap();
    a.movups(ptr(rbx + 0x1001), xmm0).unwrap();
    a.mov(ss, word_ptr(rbx + 0x300)).unwrap();
    a.mov(ds, word_ptr(rbx + 0x300)).unwrap();
    a.sgdt(ptr(rbx + 0x400)).unwrap();
    a.lgdt(ptr(rbx + 0x400)).unwrap();
    a.ltr(word_ptr(rbx + 0x302)).unwrap();
    a.int(32).unwrap();
    a.int3().unwrap();
    let (mut routine, mut behind) = (a.create_label(), a.create_label());
    a.call(routine).unwrap();
    a.jmp(behind).unwrap();
    a.set_label(&mut routine).unwrap();
    a.push(rbp).unwrap();
    a.mov(rbp, rsp).unwrap();
    a.leave().unwrap();
    a.ret().unwrap();
    a.set_label(&mut behind).unwrap();
    a.mov(rdx, qword_ptr(0x60_0000)).unwrap();
    a.cpuid().unwrap();
    a.mov(rax, cr3).unwrap();
    a.mov(cr3, rax).unwrap();
    a.mov(qword_ptr(rbx + 24), rax).unwrap();
}

fn busy_bench() -> Bench {
    let mut bench = guarded(Access::ALL, busy);
    for vector in [3, 32] {
        bench.handler(vector, u64::from(vector == 3), 0, |a| {
            a.push(rax).unwrap();
            a.pop(rax).unwrap();
            a.iretq().unwrap();
        });
    }
    // What can't be reached is made reachable by the handler.
    bench.put(0x3018, 0);
    bench.handler(14, 0, 0, |a| {
        a.add(rsp, 8).unwrap();
        a.mov(qword_ptr(0x3018), 0x83).unwrap();
        a.iretq().unwrap();
    });
    bench.put(DATA + 0x300, 0x28_0010);
    // The TSS is available, and no descriptor was accessed yet.
    for (at, mask) in [(0xa028, 0x02_u64 << 40), (0xa010, 1 << 40), (0xa008, 1 << 40)] {
        let entry = bench.word(at);
        bench.put(at, entry & !mask);
    }
    bench.state.world.apics[0].write(0xf0, 0x1ff, 0);
    bench
}

/// All that a run can change.
fn outcome(bench: &mut Bench) -> (vmtree_api::x86::Registers, u64, Vec<u8>) {
    let mut memory = vec![0; 6 << 20];
    for (index, page) in memory.chunks_mut(4096).enumerate() {
        assert!(bench.state.world.ram.load(index as u64 * 4096, page));
    }
    (bench.regs().clone(), bench.state.world.now(), memory)
}

fn run_answering(bench: &mut Bench) -> usize {
    let mut events = 0;
    for _ in 0..1_000_000 {
        let stepped = bench.state.step(0);
        if bench.state.vcpus[0].trap.held.is_some() {
            assert!(bench.event().is_some());
            bench.answer(Verdict::Continue);
            events += 1;
        } else if stepped == Stepped::Idle {
            return events + std::iter::from_fn(|| bench.event()).count();
        } else {
            assert!(matches!(stepped, Stepped::Ran | Stepped::Yielded), "{stepped:?}");
        }
    }
    panic!("it does not end");
}

#[test]
fn stopping_at_every_access_changes_nothing() {
    let mut plain = busy_bench();
    plain.run();
    let expected = outcome(&mut plain);
    let all = |access, hold| Rule { view: ViewId(0), frames: Gfn(0)..Gfn(0x600), access, hold };
    for hold in [true, false] {
        for (access, least) in [
            (Access::NONE, 250),
            (without(RX), 30),
            (Access::EXECUTE, 150),
            (Access::READ.union(Access::WRITE), 40),
        ] {
            let mut bench = busy_bench();
            bench.rules(&[all(access, hold)]);
            let events = run_answering(&mut bench);
            assert!(events > least, "{events} events without {access}");
            let got = outcome(&mut bench);
            assert_eq!((&got.0, got.1), (&expected.0, expected.1), "{access} {hold}");
            let differs = got.2.iter().zip(&expected.2).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{access} {hold}");
        }
    }
}

#[test]
fn watching_everything_changes_nothing() {
    let mut plain = busy_bench();
    plain.run();
    let expected = outcome(&mut plain);
    for hold in [true, false] {
        for kind in EventKind::ALL.iter().filter(|kind| **kind != EventKind::Slat) {
            let mut bench = busy_bench();
            bench.watch(&[Watch { hold, ..super::every(*kind) }]);
            run_answering(&mut bench);
            assert!(outcome(&mut bench) == expected, "{kind} {hold}");
        }
        let mut bench = busy_bench();
        let watches: Vec<Watch> = EventKind::ALL
            .iter()
            .filter(|kind| **kind != EventKind::Slat)
            .map(|kind| Watch { hold, ..super::every(*kind) })
            .collect();
        bench.watch(&watches);
        let frames = Gfn(0)..Gfn(0x600);
        bench.rules(&[Rule { view: ViewId(0), frames, access: Access::NONE, hold }]);
        let events = run_answering(&mut bench);
        assert!(events > 300, "{events}");
        assert!(outcome(&mut bench) == expected, "all {hold}");
    }
}
