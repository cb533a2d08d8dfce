//! The qemu driver with the agent: events and verdicts through vmtree's boundary, beside its memory and its pause.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use vmtree_api::events::{Action, Detail, EventKind, Held, Move, Verdict, Wanted, Watch, Way};
use vmtree_api::{Arch, Driver, NoHost, RegValue, RunState, Source, VcpuId};
use vmtree_guest::mailbox::{Op, Site};

use crate::lab::{LONG, Lab, at_least, release};

fn open(lab: &Lab) -> Box<dyn Driver> {
    let path = lab.folder.path().join("qmp");
    vmtree_qemu::open(Source::new("qemu", path.to_str().unwrap(), Vec::new()), Arc::new(NoHost)).unwrap()
}

fn wanted(kind: EventKind, hold: bool) -> Wanted {
    let watch = Watch { kind, way: None, vcpu: Some(VcpuId(1)), index: None, hold };
    Wanted { watches: vec![watch], rules: Vec::new() }
}

fn next(driver: &dyn Driver) -> Held {
    driver.events().unwrap().next(LONG).unwrap().expect("an event comes")
}

#[test]
fn events_and_verdicts_go_through_the_driver() {
    if !at_least((10, 0)) {
        return;
    }
    let lab = Lab::start(2, true);
    let driver = open(&lab);
    let events = driver.events().unwrap();
    assert!(driver.facts().extra.iter().any(|(key, value)| *key == "agent" && value.contains("version")));
    let cr3 = events.offers().iter().find(|offer| offer.kind == EventKind::Cr3).unwrap();
    assert!(cr3.ways.iter().all(|(_, there)| there.is_ok()));
    let deny = cr3.actions.iter().find(|(action, _)| *action == Action::Deny).unwrap().1.is_ok();
    assert_eq!(deny, release() >= (11, 0));
    events.watch(&wanted(EventKind::Cr3, false)).unwrap();
    lab.mailbox.order(1, Op::WriteCr3, &[3], LONG).unwrap();
    for _ in 0..3 {
        let held = next(&*driver);
        assert!(!held.waits() && held.event().way() == Way::To);
        assert_eq!(held.event().rip, lab.mailbox.site(Site::WriteCr3).unwrap());
    }
    events.watch(&wanted(EventKind::Cr8, true)).unwrap();
    let seq = lab.mailbox.post(1, Op::WriteCr8, &[1, 4]).unwrap();
    let held = next(&*driver);
    assert!(matches!(held.event().detail, Detail::Control(Move::To { old: 0, new: 4 })));
    // A value that CR8 can't hold, a register that can't be set so, a view: the event stays held.
    let lstar = Arch::X86_64.register("lstar").unwrap();
    let refused = held.answer(&Verdict::Value(1 << 20)).unwrap_err();
    let refused = refused.held.unwrap().answer(&Verdict::Set(vec![(lstar, RegValue::Word(1))])).unwrap_err();
    let held = refused.held.unwrap();
    // QEMU would abort.
    let cr8 = Arch::X86_64.register("cr8").unwrap();
    let held = held.answer(&Verdict::Value(2)).unwrap_err().held.unwrap();
    let held = held.answer(&Verdict::Set(vec![(cr8, RegValue::Word(2))])).unwrap_err().held.unwrap();
    held.answer(if deny { &Verdict::Deny } else { &Verdict::Continue }).unwrap();
    lab.mailbox.outcome(1, Op::WriteCr8, seq, LONG).unwrap();
    events.watch(&Wanted::default()).unwrap();
    let level = lab.mailbox.order(1, Op::ReadCr8, &[1], LONG).unwrap();
    let vmtree_guest::Outcome::Done([level, ..]) = level else { panic!("{level:?}") };
    assert_eq!(level, if deny { 0 } else { 4 });
}

#[test]
fn a_pause_while_an_event_is_held_holds_after_its_verdict() {
    if !at_least((10, 0)) {
        return;
    }
    let lab = Lab::start(2, true);
    let driver: Arc<dyn Driver> = open(&lab).into();
    driver.events().unwrap().watch(&wanted(EventKind::Cr3, true)).unwrap();
    let seq = lab.mailbox.post(1, Op::WriteCr3, &[1]).unwrap();
    let held = next(&*driver);
    let (paused, pause) = mpsc::channel();
    let pauser = driver.clone();
    thread::spawn(move || paused.send(pauser.execution().unwrap().pause()));
    thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    held.answer(&Verdict::Continue).unwrap();
    let pause = pause.recv_timeout(LONG).unwrap().unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(driver.execution().unwrap().state().unwrap(), RunState::Paused);
    // Arming needs no vCPU that runs.
    driver.events().unwrap().watch(&wanted(EventKind::SingleStep, false)).unwrap();
    driver.events().unwrap().watch(&Wanted::default()).unwrap();
    drop(pause);
    lab.mailbox.outcome(1, Op::WriteCr3, seq, LONG).unwrap();
    assert_eq!(driver.execution().unwrap().state().unwrap(), RunState::Running);
}

#[test]
fn a_dropped_driver_lets_the_vcpu_go_and_the_next_one_finds_the_agent_free() {
    if !at_least((10, 0)) {
        return;
    }
    let lab = Lab::start(2, true);
    for _ in 0..3 {
        let driver = open(&lab);
        driver.events().unwrap().watch(&wanted(EventKind::Cr3, true)).unwrap();
        let seq = lab.mailbox.post(1, Op::WriteCr3, &[2]).unwrap();
        let held = next(&*driver);
        // A second one at a time is told why it has no events.
        assert!(open(&lab).events().err().unwrap().why.contains("one at a time"));
        drop(driver);
        drop(held);
        lab.mailbox.outcome(1, Op::WriteCr3, seq, LONG).unwrap();
        thread::sleep(Duration::from_millis(100));
    }
}
