//! What Xen has yet to do for a vCPU when the ring goes is done once, and only where the vCPU has not gone on.

use std::time::Duration;

use vmtree_api::events::{EventKind, Verdict, Wanted, Watch};

use super::events::open;
use super::fake::Shared;
use super::slots::request;
use crate::events::wire::reason;

const RIP: usize = 640;
const CR3: usize = 672;

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
