//! Stepped vCPUs take their interrupts now and then.

use std::time::Duration;

use vmtree_api::events::{EventKind, Verdict, Wanted, Watch};
use vmtree_api::{Driver, ViewId};

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

fn told(driver: &dyn Driver) -> Option<u64> {
    let held = driver.events().unwrap().next(Duration::from_millis(200)).unwrap()?;
    let event = *held.event();
    assert_eq!((event.kind, event.view), (EventKind::SingleStep, ViewId(0)));
    held.answer(&Verdict::Continue).unwrap();
    Some(event.rip)
}

#[test]
fn a_stepped_vcpu_takes_its_interrupts_where_nothing_is_executed() {
    for hold in [false, true] {
        let xen = Shared::new(1);
        let driver = open(&xen);
        driver.events().unwrap().watch(&steps(hold)).unwrap();
        assert!(xen.state.lock().stepping.contains(&0));
        xen.ask(request(reason::SINGLESTEP, 0, None, &[1], 0x1000));
        assert_eq!(told(&*driver), Some(0x1000));
        let answer = xen.answers(1)[0];
        let no_fetch = view(&answer);
        assert_eq!(flags(&answer), flag::VCPU_PAUSED | flag::ALTERNATE_P2M);
        assert_eq!(xen.state.lock().default.get(&no_fetch), Some(&3), "nothing is executed there");
        assert!(xen.state.lock().stepping.is_empty(), "Xen injects nothing into one that it steps");

        // Nothing was pending: that is nobody's event.
        xen.ask(request(reason::MEM_ACCESS, 0, Some(no_fetch), &FETCH, 0x1000));
        let answer = xen.answers(2)[1];
        assert_eq!((flags(&answer), view(&answer)), (flag::VCPU_PAUSED | flag::ALTERNATE_P2M, 0));
        assert!(xen.state.lock().stepping.contains(&0));
        assert_eq!(told(&*driver), None);

        // The next one was: the handler's first instruction is told, once.
        xen.ask(request(reason::SINGLESTEP, 0, Some(0), &[1], 0x1003));
        assert_eq!(told(&*driver), Some(0x1003));
        assert_eq!(view(&xen.answers(3)[2]), no_fetch);
        xen.ask(request(reason::MEM_ACCESS, 0, Some(no_fetch), &FETCH, 0x5000));
        assert_eq!(told(&*driver), Some(0x5000));
        assert_eq!(view(&xen.answers(4)[3]), 0);
        // It is not due again yet, or is: both are steps.
        xen.ask(request(reason::SINGLESTEP, 0, Some(0), &[1], 0x5001));
        assert_eq!(told(&*driver), Some(0x5001));
        drop(driver);
        xen.is_clean();
    }
}

#[test]
fn windows_close_with_the_last_who_watches() {
    let xen = Shared::new(1);
    let driver = open(&xen);
    driver.events().unwrap().watch(&steps(false)).unwrap();
    xen.ask(request(reason::SINGLESTEP, 0, None, &[1], 0x1000));
    assert_eq!(told(&*driver), Some(0x1000));
    let no_fetch = view(&xen.answers(1)[0]);
    driver.events().unwrap().watch(&Wanted::default()).unwrap();
    assert!(xen.state.lock().ring, "the vCPU has yet to come back");
    xen.ask(request(reason::MEM_ACCESS, 0, Some(no_fetch), &FETCH, 0x5000));
    assert_eq!(view(&xen.answers(2)[1]), 0);
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
fn a_switch_of_the_view_leaves_no_window_open() {
    let xen = Shared::new(1);
    let driver = open(&xen);
    let views = driver.views().unwrap();
    let other = views.create().unwrap();
    driver.events().unwrap().watch(&steps(false)).unwrap();
    xen.ask(request(reason::SINGLESTEP, 0, Some(0), &[1], 0x1000));
    assert_eq!(told(&*driver), Some(0x1000));
    assert!(xen.state.lock().stepping.is_empty());
    views.switch(None, other).unwrap();
    assert!(xen.state.lock().stepping.contains(&0), "it goes on step by step");
    views.switch(None, ViewId(0)).unwrap();
    views.destroy(other).unwrap();
    drop(driver);
    xen.is_clean();
}
