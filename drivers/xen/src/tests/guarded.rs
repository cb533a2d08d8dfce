//! An instruction that goes against the rules of several frames: each access is told, and a wall holds.

use std::sync::Arc;
use std::time::Duration;

use vmtree_api::events::{Held, Verdict, Wanted};
use vmtree_api::views::Rule;
use vmtree_api::{Access, Driver, Gfn, Gpa, ViewId};

use super::events::open;
use super::fake::Shared;
use super::slots::{flags, request, view};
use crate::events::wire::{Slot, flag, reason};

/// Of 16-bit code at 0x1000 fetches are told; frame 5 can't be written. Xen's number of the view.
fn ruled(code: &[u8], altp2m: bool) -> (Arc<Shared>, Box<dyn Driver>, u16) {
    let xen = Shared::new(1);
    xen.state.lock().altp2m = altp2m;
    let driver = open(&xen);
    driver.memory().write(Gpa(0x1000), code).unwrap();
    let rule =
        |frame, access, hold| Rule { view: ViewId(0), frames: Gfn(frame)..Gfn(frame + 1), access, hold };
    let fetches = rule(1, Access::READ.union(Access::WRITE), false);
    let rules = vec![fetches, rule(5, Access::READ, true)];
    driver.events().unwrap().watch(&Wanted { watches: vec![], rules }).unwrap();
    let on = xen.state.lock().on;
    (xen, driver, on)
}

/// An access of the instruction at 0x1000; BX is 0x5008.
fn access(on: u16, gpa: u64, what: u64) -> Slot {
    let on = (on != 0).then_some(on);
    let mut slot = request(reason::MEM_ACCESS, 0, on, &[gpa >> 12, gpa & 0xfff, gpa, what | 8], 0x1000);
    slot[80..88].copy_from_slice(&0x5008_u64.to_le_bytes());
    slot
}

fn next(driver: &dyn Driver) -> Held {
    driver.events().unwrap().next(Duration::from_secs(5)).unwrap().expect("an event")
}

// mov [bx], al; mov al, [bx]
const MOV: &[u8] = &[0x88, 0x07];
const LOAD: &[u8] = &[0x8a, 0x07];

#[test]
fn a_write_behind_a_fetch_that_is_told_meets_its_wall() {
    // The last time it is a read by a page walk of the same frame that is told.
    for (verdict, what) in [(Verdict::Deny, 4), (Verdict::Continue, 4), (Verdict::Deny, 1 | 0x20)] {
        let (xen, driver, base) = ruled(MOV, true);
        xen.ask(access(base, 0x1000, what));
        let first = xen.answers(1)[0];
        let guard = view(&first);
        assert_eq!(flags(&first), flag::VCPU_PAUSED | flag::ALTERNATE_P2M);
        let rights = |frame| xen.state.lock().access.get(&(guard, frame)).copied();
        assert!(guard != base && guard != 0);
        assert_eq!((rights(5), rights(1)), (Some(1), None), "its code has all rights there");
        let _told = (what == 4).then(|| assert!(!next(&*driver).waits()));
        xen.ask(access(guard, 0x5008, 2));
        let held = next(&*driver);
        assert_eq!((held.waits(), held.event().view), (true, ViewId(0)));
        held.answer(&verdict).unwrap();
        let answer = xen.answers(2)[1];
        if verdict == Verdict::Deny {
            assert_eq!(
                (flags(&answer) & flag::EMULATE_NOWRITE, view(&answer)),
                (flag::EMULATE_NOWRITE, base)
            );
        } else {
            assert_eq!((view(&answer), rights(5)), (guard, Some(7)));
            xen.ask(request(reason::SINGLESTEP, 0, Some(guard), &[1], 0x1002));
            assert_eq!(view(&xen.answers(3)[2]), base);
        }
        let gone = || !xen.state.lock().made.contains(&guard);
        assert!((0..500).any(|_| gone() || {
            std::thread::sleep(Duration::from_millis(10));
            false
        }));
        drop(driver);
        xen.is_clean();
    }
}

#[test]
fn what_the_rules_allow_costs_no_view() {
    let (xen, driver, base) = ruled(LOAD, true);
    let made = xen.state.lock().made.clone();
    xen.ask(access(base, 0x1000, 4));
    assert_eq!(view(&xen.answers(1)[0]), 0);
    assert_eq!(xen.state.lock().made, made);
    drop(driver);
    xen.is_clean();
}

#[test]
fn without_alternate_views_the_rights_of_one_frame_are_lifted() {
    let (xen, driver, _) = ruled(MOV, false);
    xen.ask(access(0, 0x1000, 4));
    assert_eq!(flags(&xen.answers(1)[0]), flag::VCPU_PAUSED, "the emulator would do all of it");
    let rights = |frame| xen.state.lock().access.get(&(0, frame)).copied();
    assert_eq!((rights(1), rights(5)), (Some(7), Some(1)));
    assert!(!next(&*driver).waits());
    xen.ask(access(0, 0x5008, 2));
    next(&*driver).answer(&Verdict::Continue).unwrap();
    xen.answers(2);
    assert_eq!((rights(1), rights(5)), (Some(7), Some(7)));
    xen.ask(request(reason::SINGLESTEP, 0, None, &[1], 0x1002));
    xen.answers(3);
    assert_eq!((rights(1), rights(5)), (Some(3), Some(1)));
    drop(driver);
    xen.is_clean();
}

#[test]
fn whichever_call_fails_nothing_is_left() {
    for fails in 0..8 {
        let (xen, driver, base) = ruled(MOV, true);
        xen.state.lock().fails_in = Some(fails);
        xen.ask(access(base, 0x1000, 4));
        let on = view(&xen.answers(1)[0]);
        xen.state.lock().fails_in = None;
        assert!(on != base, "it goes on, call {fails}");
        drop(driver);
        xen.is_clean();
    }
}
