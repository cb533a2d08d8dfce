//! Events, views and injection of the machine as a driver, from other threads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../machine/bench.rs"]
mod bench;
mod model;
mod views;

use std::sync::Arc;
use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use vmtree_api::events::{
    Action, Detail, Event, EventKind, EventSource, Held, Inject, Move, Verdict, Wanted, Watch, Way,
};
use vmtree_api::views::Rule;
use vmtree_api::x86::Reg;
use vmtree_api::{Access, Cancel, ErrorKind, Gfn, NoHost, RegValue, RunState, VcpuId, ViewId};

use bench::{V0, open, open_with, regs, word};

const SOON: Duration = Duration::from_secs(10);
const COUNTS: u64 = 0x20_0000;

fn watch(kind: EventKind, hold: bool) -> Watch {
    Watch { kind, way: None, vcpu: None, index: None, hold }
}

fn wanted(kind: EventKind, hold: bool) -> Wanted {
    Wanted { watches: vec![watch(kind, hold)], rules: Vec::new() }
}

fn next(events: &dyn EventSource) -> Held {
    events.next(SOON).unwrap().expect("an event")
}

/// Writes CR3 and counts, for ever; each vCPU in a word of its own.
fn switching(a: &mut CodeAssembler) {
    let mut again = a.create_label();
    a.mov(rbx, COUNTS).unwrap();
    a.mov(rax, 0x1000_u64).unwrap();
    a.set_label(&mut again).unwrap();
    a.xor(eax, 8).unwrap();
    a.mov(cr3, rax).unwrap();
    a.inc(qword_ptr(rbx + rdi * 8)).unwrap();
    a.jmp(again).unwrap();
}

#[test]
fn everything_is_offered() {
    let driver = open(1, switching);
    let offers = driver.events().unwrap().offers();
    assert_eq!(offers.iter().map(|offer| offer.kind).collect::<Vec<_>>(), EventKind::ALL);
    for offer in offers {
        assert_eq!(offer.ways.iter().map(|(way, _)| *way).collect::<Vec<_>>(), offer.kind.ways());
        assert!(offer.ways.iter().all(|(_, seen)| seen.is_ok()));
        assert!(offer.actions.iter().all(|(_, taken)| taken.is_ok()));
        assert_eq!(offer.actions[0].0, Action::Continue);
    }
}

#[test]
fn what_cant_be_watched_is_refused_and_changes_nothing() {
    let driver = open(1, switching);
    let events = driver.events().unwrap();
    events.watch(&wanted(EventKind::Cr3, true)).unwrap();
    let rule = |frames, access| Rule { view: ViewId(0), frames, access, hold: true };
    let few = Gfn(1)..Gfn(3);
    let rules = |rules: Vec<Rule>| Wanted { watches: Vec::new(), rules };
    let bad = [
        (wanted(EventKind::Slat, true), ErrorKind::Invalid),
        (
            Wanted {
                watches: vec![Watch { way: Some(Way::From), ..watch(EventKind::Xcr0, true) }],
                rules: Vec::new(),
            },
            ErrorKind::Unsupported,
        ),
        (
            Wanted {
                watches: vec![Watch { vcpu: Some(VcpuId(1)), ..watch(EventKind::Cr3, true) }],
                rules: vec![],
            },
            ErrorKind::NotFound,
        ),
        (rules(vec![rule(few.clone(), Access::WRITE)]), ErrorKind::Invalid),
        (rules(vec![rule(few.clone(), Access::WRITE.union(Access::EXECUTE))]), ErrorKind::Invalid),
        (rules(vec![rule(few.clone(), Access::READ), rule(few.clone(), Access::READ)]), ErrorKind::Invalid),
        (rules(vec![rule(Gfn(3)..Gfn(3), Access::READ)]), ErrorKind::Invalid),
        (rules(vec![rule(Gfn(0x5ff)..Gfn(0x601), Access::READ)]), ErrorKind::NotFound),
        (rules(vec![rule(Gfn(0xfee00)..Gfn(0xfee01), Access::READ)]), ErrorKind::NotFound),
        (rules(vec![rule(Gfn(u64::MAX - 1)..Gfn(u64::MAX), Access::READ)]), ErrorKind::NotFound),
        (rules(vec![Rule { view: ViewId(3), ..rule(few, Access::READ) }]), ErrorKind::NotFound),
    ];
    for (wanted, kind) in bad {
        let error = events.watch(&wanted).unwrap_err();
        assert_eq!(error.kind(), kind, "{wanted:?}: {error}");
        assert!(!error.to_string().contains('\n'));
    }
    assert_eq!(next(events).event().kind, EventKind::Cr3, "still armed");
}

#[test]
fn held_vcpus_wait_and_are_answered_in_any_order() {
    let driver = open(3, switching);
    let events = driver.events().unwrap();
    events.watch(&wanted(EventKind::Cr3, true)).unwrap();
    for _ in 0..20 {
        let mut held: Vec<Held> = (0..3).map(|_| next(events)).collect();
        assert!(events.next(Duration::from_millis(1)).unwrap().is_none());
        let counts: Vec<u64> = (0..3).map(|index| word(&*driver, COUNTS + index * 8)).collect();
        std::thread::sleep(Duration::from_millis(2));
        let after: Vec<u64> = (0..3).map(|index| word(&*driver, COUNTS + index * 8)).collect();
        assert_eq!(counts, after);
        held.sort_by_key(|held| std::cmp::Reverse(held.event().vcpu));
        for held in held {
            let Event { detail: Detail::Control(Move::To { old, new }), cr3: now, .. } = *held.event() else {
                panic!()
            };
            assert_eq!((old, old ^ new), (now, 8));
            held.answer(&Verdict::Continue).unwrap();
        }
    }
}

#[test]
fn others_run_on_while_one_is_held_and_a_dropped_one_continues() {
    let driver = open(2, switching);
    let events = driver.events().unwrap();
    events
        .watch(&Wanted {
            watches: vec![Watch { vcpu: Some(V0), ..watch(EventKind::Cr3, true) }],
            rules: vec![],
        })
        .unwrap();
    let held = next(events);
    let (mine, other) = (word(&*driver, COUNTS), word(&*driver, COUNTS + 8));
    let deadline = Instant::now() + SOON;
    while word(&*driver, COUNTS + 8) == other {
        assert!(Instant::now() < deadline);
    }
    assert_eq!(word(&*driver, COUNTS), mine);
    // What is wanted may change meanwhile: it stays held.
    events.watch(&Wanted::default()).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(word(&*driver, COUNTS), mine);
    drop(held);
    while word(&*driver, COUNTS) == mine {
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn registers_of_a_held_vcpu_are_at_the_instruction() {
    let driver = open(1, switching);
    let events = driver.events().unwrap();
    events.watch(&wanted(EventKind::Cr3, true)).unwrap();
    let held = next(events);
    let before = regs(&*driver, V0);
    assert_eq!((before.rip, before.cr3), (held.event().rip, held.event().cr3));
    let change = [(Reg::Rax.id(), RegValue::Word(0x1010))];
    driver.registers().unwrap().write(V0, &change).unwrap();
    held.answer(&Verdict::Continue).unwrap();
    assert_eq!(next(events).event().cr3, 0x1010);
}

#[test]
fn a_pause_while_held_lasts_beyond_the_verdict_and_steps_wait() {
    let driver = open(1, switching);
    let (events, execution) = (driver.events().unwrap(), driver.execution().unwrap());
    events.watch(&wanted(EventKind::Cr3, true)).unwrap();
    let held = next(events);
    let _pause = execution.pause().unwrap();
    let error = execution.step(V0, 1, &Cancel::default()).unwrap_err();
    assert!(error.kind() == ErrorKind::Busy && error.to_string().contains("held"), "{error}");
    let before = regs(&*driver, V0);
    held.answer(&Verdict::Continue).unwrap();
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(regs(&*driver, V0), before);
    assert_eq!(execution.state().unwrap(), RunState::Paused);
    // The write of CR3, then INC, JMP, XOR; the next write is held in the middle of the step.
    std::thread::scope(|scope| {
        let step = scope.spawn(|| execution.step(V0, 5, &Cancel::default()).unwrap());
        let held = next(events);
        std::thread::sleep(Duration::from_millis(20));
        assert!(!step.is_finished());
        held.answer(&Verdict::Continue).unwrap();
        assert_eq!(step.join().unwrap(), 5);
    });
    assert_eq!(regs(&*driver, V0).tsc, before.tsc + 50);
}

#[test]
fn a_refused_verdict_leaves_it_held() {
    let driver = open(1, switching);
    let events = driver.events().unwrap();
    events.watch(&wanted(EventKind::Cr3, true)).unwrap();
    let refused = next(events).answer(&Verdict::Value(1 << 60)).unwrap_err();
    assert_eq!(refused.error.kind(), ErrorKind::Invalid);
    refused.held.unwrap().answer(&Verdict::Value(0x1018)).unwrap();
    next(events).answer(&Verdict::Deny).unwrap();
    assert_eq!(next(events).event().cr3, 0x1018);
}

#[test]
fn a_machine_that_ends_says_so() {
    let driver = open_with(Arc::new(NoHost), 1, |a| {
        a.mov(rax, 0x1000_u64).unwrap();
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.dec(rbx).unwrap();
        a.jnz(again).unwrap();
        a.mov(cr3, rax).unwrap();
        a.ud2().unwrap();
    });
    let events = driver.events().unwrap();
    events.watch(&wanted(EventKind::Cr3, true)).unwrap();
    driver.registers().unwrap().write(V0, &[(Reg::Rbx.id(), RegValue::Word(1))]).unwrap();
    let held = next(events);
    held.answer(&Verdict::Continue).unwrap();
    let error = events.next(SOON).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Gone, "{error}");
    assert_eq!(driver.views().unwrap().create().unwrap_err().kind(), ErrorKind::Gone);
    assert_eq!(driver.injection().unwrap().inject(V0, Inject::Nmi).unwrap_err().kind(), ErrorKind::Gone);
}

#[test]
fn a_driver_that_is_dropped_with_held_vcpus_ends_and_later_answers_are_gone() {
    let driver = open(2, switching);
    driver.events().unwrap().watch(&wanted(EventKind::Cr3, true)).unwrap();
    let held = [next(driver.events().unwrap()), next(driver.events().unwrap())];
    let begun = Instant::now();
    drop(driver);
    assert!(begun.elapsed() < SOON);
    for held in held {
        let refused = held.answer(&Verdict::Continue).unwrap_err();
        assert!(refused.error.kind() == ErrorKind::Gone && refused.held.is_none());
    }
}

#[test]
fn an_observer_that_is_slow_loses_nothing() {
    let driver = open(1, switching);
    let events = driver.events().unwrap();
    events.watch(&wanted(EventKind::Cr3, false)).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let mut last = None;
    for _ in 0..30_000 {
        let held = next(events);
        let Detail::Control(Move::To { old, new }) = held.event().detail else { panic!() };
        assert!(last.is_none_or(|last| last == old), "none is missing");
        last = Some(new);
        held.answer(&Verdict::Continue).unwrap();
    }
}

#[test]
fn an_injected_nmi_wakes_a_sleeping_machine() {
    let driver = open(1, |a| {
        a.hlt().unwrap();
    });
    let events = driver.events().unwrap();
    events.watch(&wanted(EventKind::Interrupt, true)).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(
        driver.injection().unwrap().inject(VcpuId(1), Inject::Nmi).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    driver.injection().unwrap().inject(V0, Inject::Nmi).unwrap();
    // There is no IDT: the injected one raises no event, what comes of it does.
    let held = next(events);
    assert!(matches!(held.event().detail, Detail::Interrupt { vector: Some(13), error: Some(_), .. }));
    held.answer(&Verdict::Continue).unwrap();
    drop(next(events));
    assert_eq!(events.next(SOON).unwrap_err().kind(), ErrorKind::Gone, "a triple fault");
}
