//! Stepped vCPUs take their interrupts now and then.

use std::sync::Arc;
use std::time::Duration;

use vmtree_api::events::{EventKind, Verdict, Wanted, Watch};
use vmtree_api::{Driver, Gpa, ViewId};

use super::events::open;
use super::fake::Shared;
use super::slots::{flags, request, view};
use crate::events::wire::{flag, reason};

/// What a fetch is to Xen: its frame, offset, address and flags.
const FETCH: [u64; 4] = [5, 0, 0x5000, 0x44];

fn steps(hold: bool) -> Wanted {
    let watch = Watch { kind: EventKind::SingleStep, way: None, vcpu: None, index: None, hold };
    Wanted { watches: vec![watch], rules: Vec::new() }
}

/// So many steps that an interrupt could come before, all but the last without a window.
fn some_steps(xen: &Shared, driver: &dyn Driver, count: usize, rip: u64) {
    let before = xen.state.lock().responses.len();
    for nth in 1..=count {
        let mut step = request(reason::SINGLESTEP, 0, Some(0), &[1], rip);
        step[184..192].copy_from_slice(&0x202_u64.to_le_bytes());
        xen.ask(step);
        assert_eq!(told(driver), Some(rip));
        let answer = xen.answers(before + nth)[before + nth - 1];
        assert!(nth == count || view(&answer) == 0, "a window after {nth} steps");
    }
}

fn told(driver: &dyn Driver) -> Option<u64> {
    let held = driver.events().unwrap().next(Duration::from_millis(200)).unwrap()?;
    let event = *held.event();
    assert_eq!((event.kind, event.view), (EventKind::SingleStep, ViewId(0)));
    held.answer(&Verdict::Continue).unwrap();
    Some(event.rip)
}

/// A vCPU that does not halt, and has a window before its next instruction at 0x1000.
fn at_a_window(hold: bool) -> (Arc<Shared>, Box<dyn Driver>, u16) {
    let xen = Shared::new(1);
    xen.state.lock().ran.insert(0, 1);
    let driver = open(&xen);
    driver.events().unwrap().watch(&steps(hold)).unwrap();
    assert!(xen.state.lock().stepping.contains(&0));
    some_steps(&xen, &*driver, 256, 0x1000);
    let no_fetch = view(&xen.answers(256)[255]);
    assert_eq!(xen.state.lock().default.get(&no_fetch), Some(&3), "nothing is executed there");
    assert!(xen.state.lock().stepping.is_empty(), "Xen injects nothing into one that it steps");
    (xen, driver, no_fetch)
}

#[test]
fn a_stepped_vcpu_takes_its_interrupts_where_nothing_is_executed() {
    for hold in [false, true] {
        let (xen, driver, no_fetch) = at_a_window(hold);
        // Nothing was pending: that is nobody's event.
        xen.ask(request(reason::MEM_ACCESS, 0, Some(no_fetch), &FETCH, 0x1000));
        let answer = xen.answers(257)[256];
        assert_eq!((flags(&answer), view(&answer)), (flag::VCPU_PAUSED | flag::ALTERNATE_P2M, 0));
        assert!(xen.state.lock().stepping.contains(&0));
        assert_eq!(told(&*driver), None);

        // The next time something was: the handler's first instruction is told, once.
        some_steps(&xen, &*driver, 256, 0x1003);
        xen.ask(request(reason::MEM_ACCESS, 0, Some(no_fetch), &FETCH, 0x5000));
        assert_eq!(told(&*driver), Some(0x5000));
        assert_eq!(view(&xen.answers(514)[513]), 0);
        // The handler has interrupts off.
        for nth in 0..300 {
            xen.ask(request(reason::SINGLESTEP, 0, Some(0), &[1], 0x5001));
            assert_eq!(told(&*driver), Some(0x5001));
            assert_eq!(view(&xen.answers(515 + nth)[514 + nth]), 0);
        }
        drop(driver);
        xen.is_clean();
    }
}

#[test]
fn behind_each_hlt_there_is_a_window() {
    let xen = Shared::new(1);
    xen.state.lock().ran.insert(0, 1);
    let driver = open(&xen);
    driver.memory().write(Gpa(0x1000), &[0xfb, 0xf4]).unwrap();
    driver.events().unwrap().watch(&steps(false)).unwrap();
    let step = |rip, rflags: u64| {
        let answered = xen.state.lock().responses.len();
        let mut step = request(reason::SINGLESTEP, 0, Some(0), &[1], rip);
        step[184..192].copy_from_slice(&rflags.to_le_bytes());
        xen.ask(step);
        assert_eq!(told(&*driver), Some(rip));
        view(&xen.answers(answered + 1)[answered])
    };
    // Interrupts were on before, and are off up to the STI.
    assert_eq!((step(0x2000, 0x202), step(0x1000, 2), step(0x1001, 0x202)), (0, 0, 0));
    assert_ne!(step(0x1002, 0x202), 0);
    drop(driver);
    xen.is_clean();
}

#[test]
fn windows_close_with_the_last_who_watches() {
    let (xen, driver, no_fetch) = at_a_window(false);
    driver.events().unwrap().watch(&Wanted::default()).unwrap();
    assert!(xen.state.lock().ring, "the vCPU has yet to come back");
    xen.ask(request(reason::MEM_ACCESS, 0, Some(no_fetch), &FETCH, 0x5000));
    assert_eq!(view(&xen.answers(257)[256]), 0);
    for _ in 0..500 {
        if !xen.state.lock().ring {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    xen.is_clean();
    drop(driver);
}

#[test]
fn a_vcpu_that_waits_for_an_interrupt_has_a_window_at_once() {
    let xen = Shared::new(1);
    let driver = open(&xen);
    driver.events().unwrap().watch(&steps(false)).unwrap();
    // It is looked at every 200 ms.
    std::thread::sleep(Duration::from_millis(500));
    some_steps(&xen, &*driver, 1, 0x1000);
    assert_ne!(view(&xen.answers(1)[0]), 0);
    drop(driver);
    xen.is_clean();
}

#[test]
fn a_switch_of_the_view_leaves_no_window_open() {
    let (xen, driver, _) = at_a_window(false);
    let views = driver.views().unwrap();
    let other = views.create().unwrap();
    views.switch(None, other).unwrap();
    assert!(xen.state.lock().stepping.contains(&0), "it goes on step by step");
    views.switch(None, ViewId(0)).unwrap();
    views.destroy(other).unwrap();
    drop(driver);
    xen.is_clean();
}
