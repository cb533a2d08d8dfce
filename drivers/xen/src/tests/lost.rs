//! What Xen has yet to do for a vCPU when the ring goes is done once, and only where the vCPU has not gone on.

use std::time::Duration;

use vmtree_api::events::{EventKind, Verdict, Wanted, Watch};

use super::events::open;
use super::fake::Shared;
use super::slots::request;
use crate::events::wire::reason;

const RIP: usize = 640;
const CR3: usize = 672;
const LSTAR: usize = 960;

fn watch(kind: EventKind, hold: bool) -> Wanted {
    Wanted { watches: vec![Watch { kind, way: None, vcpu: None, index: None, hold }], rules: Vec::new() }
}

#[test]
fn a_held_write_is_done_however_late_the_ring_goes() {
    let xen = Shared::new(1);
    let driver = open(&xen);
    let events = driver.events().unwrap();
    events.watch(&watch(EventKind::Cr3, true)).unwrap();
    // It does not get on, as the domain is paused.
    xen.state.lock().ran.insert(0, 5);
    let pause = driver.execution().unwrap().pause().unwrap();
    xen.ask(request(reason::WRITE_CTRLREG, 0, None, &[1, 0x2000, 0x1000], 0x1000));
    let held = events.next(Duration::from_secs(5)).unwrap().unwrap();
    held.answer(&Verdict::Continue).unwrap();
    std::thread::sleep(Duration::from_millis(250));
    events.watch(&Wanted::default()).unwrap();
    drop(pause);
    drop(driver);
    assert_eq!(xen.register(0, CR3), 0x2000);
    xen.is_clean();
}

#[test]
fn an_answer_before_the_vcpu_has_stopped_is_not_taken_for_its_going_on() {
    let xen = Shared::new(1);
    let driver = open(&xen);
    let events = driver.events().unwrap();
    events.watch(&watch(EventKind::Cr3, true)).unwrap();
    xen.state.lock().ran.insert(0, 5);
    let pause = driver.execution().unwrap().pause().unwrap();
    xen.ask(request(reason::WRITE_CTRLREG, 0, None, &[1, 0x2000, 0x1000], 0x1000));
    let held = events.next(Duration::from_secs(5)).unwrap().unwrap();
    // It is on its way to stand still, and comes no further: it has not done its write.
    xen.state.lock().stopping = 3;
    held.answer(&Verdict::Continue).unwrap();
    events.watch(&Wanted::default()).unwrap();
    drop(pause);
    drop(driver);
    assert_eq!(xen.register(0, CR3), 0x2000);
    xen.is_clean();
}

#[test]
fn a_write_that_fails_once_is_done_all_the_same() {
    let mut struck = 0;
    for fails in 0..6 {
        for (why, content) in
            [(reason::WRITE_CTRLREG, [1, 0x2000, 0x1000]), (reason::MOV_TO_MSR, [0xc000_0082, 5, 4])]
        {
            let xen = Shared::new(1);
            let driver = open(&xen);
            let events = driver.events().unwrap();
            let kind = if why == reason::MOV_TO_MSR { EventKind::Msr } else { EventKind::Cr3 };
            events.watch(&watch(kind, true)).unwrap();
            xen.state.lock().ran.insert(0, 5);
            let pause = driver.execution().unwrap().pause().unwrap();
            xen.ask(request(why, 0, None, &content, 0x1000));
            events.next(Duration::from_secs(5)).unwrap().unwrap().answer(&Verdict::Continue).unwrap();
            xen.state.lock().fails_in = Some(fails);
            drop(pause);
            drop(driver);
            struck += u32::from(xen.state.lock().fails_in.is_none());
            xen.state.lock().fails_in = None;
            let is = if kind == EventKind::Msr { xen.register(0, LSTAR) } else { xen.register(0, CR3) };
            assert_eq!(is, content[1], "{kind}, call {fails}");
            xen.is_clean();
        }
    }
    assert!(struck >= 6, "only {struck} calls failed");
}

#[test]
fn who_has_gone_on_keeps_its_registers() {
    for (after, rip) in [(5, 0x1002), (9, 0)] {
        let xen = Shared::new(1);
        let driver = open(&xen);
        driver.events().unwrap().watch(&watch(EventKind::Cpuid, false)).unwrap();
        xen.state.lock().ran.insert(0, 5);
        let mut cpuid = request(reason::CPUID, 0, None, &[2, 0], 0x1000);
        // RFLAGS as after a reset, since a vCPU takes no other.
        cpuid[184] = 2;
        xen.ask(cpuid);
        xen.answers(1);
        xen.state.lock().ran.insert(0, after);
        drop(driver);
        assert_eq!(xen.register(0, RIP), rip, "{after}");
        xen.is_clean();
    }
}
