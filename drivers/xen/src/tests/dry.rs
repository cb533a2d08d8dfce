//! Instructions without their writes, or with other data, by one step on copies of what they touch.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use vmtree_api::events::{EventKind, Held, Verdict, Wanted, Watch};
use vmtree_api::views::{Remap, Rule};
use vmtree_api::x86::Reg;
use vmtree_api::{Access, Driver, ErrorKind, Gfn, Gpa, RegValue, VcpuId, ViewId};

use super::copies::on_a_view;
use super::events::open;
use super::fake::Shared;
use super::fence::stepping;
use super::slots::{flags, request, view, word};
use crate::events::wire::{Slot, flag, reason};

const RIP: usize = 640;
// In 16-bit code: mov [bx], al; add [bx], ax; mov al, [bx]; xsave [bx].
const MOV: &[u8] = &[0x88, 0x07];
const ADD: &[u8] = &[0x01, 0x07];
const LOAD: &[u8] = &[0x8a, 0x07];
const XSAVE: &[u8] = &[0x0f, 0xae, 0x27];

/// What step events and answers to them look like.
const STEPS: u32 = flag::VCPU_PAUSED | flag::ALTERNATE_P2M;

/// An access to this address; BX has `bx`.
fn access(on: u16, gpa: u64, what: u64, bx: u64) -> Slot {
    let content = [gpa >> 12, gpa & 0xfff, gpa, what | 8];
    let mut slot = request(reason::MEM_ACCESS, 0, Some(on), &content, 0x1000);
    slot[80..88].copy_from_slice(&bx.to_le_bytes());
    slot
}

fn held(driver: &dyn Driver) -> Held {
    driver.events().unwrap().next(Duration::from_secs(5)).unwrap().expect("an event")
}

fn step(xen: &Shared, on: u16, rip: u64) {
    xen.ask(request(reason::SINGLESTEP, 0, Some(on), &[1], rip));
}

fn bytes<const N: usize>(driver: &dyn Driver, gpa: u64) -> [u8; N] {
    let mut buf = [0; N];
    driver.memory().read(Gpa(gpa), &mut buf).unwrap();
    buf
}

/// The frames that one of Xen's views shows otherwise, and by which pages.
fn shown(xen: &Shared, of: u16) -> Vec<(u64, u64)> {
    let state = xen.state.lock();
    state
        .shown
        .iter()
        .filter(|((view, _), _)| *view == of)
        .map(|((_, frame), page)| (*frame, *page))
        .collect()
}

/// Views, and who is stepped.
fn armed(xen: &Shared) -> (BTreeSet<u16>, BTreeSet<u32>) {
    let state = xen.state.lock();
    (state.made.clone(), state.stepping.clone())
}

/// Nothing of the step is left: its view, its pages, its stepping.
fn is_over(xen: &Shared, on: u16) {
    let gone = || {
        let (made, stepping) = armed(xen);
        !made.contains(&on) && stepping.is_empty()
    };
    assert!((0..500).any(|_| gone() || {
        std::thread::sleep(Duration::from_millis(10));
        false
    }));
}

/// A domain whose emulator was given a write of this code to frame 5, and could not do it; Xen's number of the view with the
/// rule.
fn unemulated(code: &[u8], watches: Vec<Watch>, verdict: &Verdict) -> (Arc<Shared>, Box<dyn Driver>, u16) {
    let xen = Shared::new(1);
    let driver = open(&xen);
    driver.memory().write(Gpa(0x1000), code).unwrap();
    driver.memory().write(Gpa(0x5008), b"guest's").unwrap();
    let (deny, frames) = (*verdict == Verdict::Deny, Gfn(5)..Gfn(6));
    let access_of = if deny { Access::READ } else { Access::NONE };
    let rules = vec![Rule { view: ViewId(0), frames, access: access_of, hold: true }];
    driver.events().unwrap().watch(&Wanted { watches, rules }).unwrap();
    let base = xen.state.lock().on;
    xen.ask(access(base, 0x5008, if deny { 2 } else { 1 }, 0x5008));
    held(&*driver).answer(verdict).unwrap();
    assert_ne!(flags(&xen.answers(1)[0]) & flag::EMULATE, 0);
    xen.ask(request(reason::EMUL_UNIMPLEMENTED, 0, Some(base), &[], 0x1000));
    (xen, driver, base)
}

#[test]
fn what_the_emulator_cant_do_is_denied_on_copies() {
    let steps = Watch { kind: EventKind::SingleStep, way: None, vcpu: None, index: None, hold: false };
    for watches in [vec![], vec![steps]] {
        let watched = !watches.is_empty();
        let (xen, driver, base) = unemulated(XSAVE, watches, &Verdict::Deny);
        let answer = xen.answers(2)[1];
        let on = view(&answer);
        assert_eq!(flags(&answer), STEPS);
        assert!(on != 0 && on != base && xen.state.lock().stepping.contains(&0));
        // How much XSAVE writes is not known before.
        let frames = shown(&xen, on);
        assert_eq!(frames.iter().map(|(frame, _)| *frame).collect::<Vec<_>>(), [5, 6, 7, 8]);
        let (_, page) = frames[0];
        assert_eq!(&bytes(&*driver, (page << 12) + 8), b"guest's");
        // The vCPU writes there.
        driver.memory().write(Gpa((page << 12) + 8), b"changed").unwrap();
        step(&xen, on, 0x1003);
        assert_eq!((view(&xen.answers(3)[2]), &bytes(&*driver, 0x5008)), (base, b"guest's"));
        let told = driver.events().unwrap().next(Duration::from_millis(50)).unwrap();
        assert_eq!(
            told.map(|told| told.event().view),
            watched.then_some(ViewId(0)),
            "nobody is told of our own"
        );
        assert!(!xen.state.lock().made.contains(&on));
        if !watched {
            is_over(&xen, on);
        }
        drop(driver);
        xen.is_clean();
    }
}

#[test]
fn a_value_that_the_emulator_cant_give_is_read_from_a_copy() {
    let (xen, driver, base) = unemulated(LOAD, vec![], &Verdict::Value(0x4142));
    let on = view(&xen.answers(2)[1]);
    let [(5, page)] = shown(&xen, on)[..] else { panic!("{:?}", shown(&xen, on)) };
    // One byte is read.
    assert_eq!(&bytes(&*driver, (page << 12) + 7), b"\0Buest's");
    step(&xen, on, 0x1002);
    assert_eq!((view(&xen.answers(3)[2]), &bytes(&*driver, 0x5008)), (base, b"guest's"));
    drop(driver);
    xen.is_clean();
}

#[test]
fn a_view_with_other_code_or_data_denies_and_takes_values_too() {
    for (copy, what, verdict) in [(ADD, 3, Verdict::Deny), (LOAD, 1, Verdict::Value(0x5a))] {
        let (xen, driver, on) = on_a_view(MOV, copy);
        driver.views().unwrap().remap(ViewId(1), Gfn(5), Remap::Copy).unwrap();
        driver.views().unwrap().write(ViewId(1), Gpa(0x5008), b"ours").unwrap();
        xen.ask(access(on, 0x5008, what, 0x5008));
        held(&*driver).answer(&verdict).unwrap();
        let dry = view(&xen.answers(1)[0]);
        let (others, own) = (shown(&xen, dry), shown(&xen, on));
        assert_eq!(others[0], own[0], "the code is the view's");
        let ((5, page), (5, copy)) = (others[1], own[1]) else { panic!("{others:?} {own:?}") };
        assert_ne!(page, copy);
        let has = if what == 1 { b"Zurs" } else { b"ours" };
        assert_eq!(&bytes(&*driver, (page << 12) + 8), has);
        step(&xen, dry, 0x1002);
        assert_eq!(view(&xen.answers(2)[1]), on);
        is_over(&xen, dry);
        drop(driver);
        xen.is_clean();
    }
}

#[test]
fn what_crosses_into_the_next_frame_is_denied_in_both() {
    for at in [0x5fff, 0x6000] {
        let (xen, driver, on) = on_a_view(MOV, ADD);
        xen.ask(access(on, at, 3, 0x5fff));
        held(&*driver).answer(&Verdict::Deny).unwrap();
        let frames = shown(&xen, view(&xen.answers(1)[0]));
        assert_eq!(frames.iter().map(|(frame, _)| *frame).collect::<Vec<_>>(), [1, 5, 6], "{at:#x}");
        drop(driver);
        xen.is_clean();
    }
    let (xen, driver, on) = on_a_view(MOV, &[0x8b, 0x07]);
    xen.ask(access(on, 0x6000, 1, 0x5fff));
    held(&*driver).answer(&Verdict::Value(0x4241)).unwrap();
    let [_, (5, low), (6, high)] = shown(&xen, view(&xen.answers(1)[0]))[..] else { panic!() };
    assert_eq!((&bytes(&*driver, (low << 12) + 0xfff), &bytes(&*driver, high << 12)), (b"A", b"B"));
    drop(driver);
    xen.is_clean();
}

#[test]
fn a_value_for_what_writes_too_is_refused() {
    let (xen, driver, on) = on_a_view(MOV, ADD);
    xen.ask(access(on, 0x5008, 1, 0x5008));
    let refused = held(&*driver).answer(&Verdict::Value(1)).unwrap_err();
    assert_eq!(refused.error.kind(), ErrorKind::Unsupported);
    assert!(refused.error.why().contains("writes memory as well"), "{}", refused.error);
    refused.held.unwrap().answer(&Verdict::Continue).unwrap();
    drop(driver);
    xen.is_clean();
}

#[test]
fn without_a_view_left_an_answer_is_refused_and_a_wall_writes_nothing() {
    let (xen, driver, on) = on_a_view(MOV, ADD);
    while driver.views().unwrap().create().is_ok() {}
    let made = armed(&xen);
    xen.ask(access(on, 0x5008, 3, 0x5008));
    let refused = held(&*driver).answer(&Verdict::Deny).unwrap_err();
    assert_eq!(refused.error.kind(), ErrorKind::NoSpace);
    assert_eq!(armed(&xen), made);
    // As a wall does, which nobody can be told of.
    refused.held.unwrap().answer(&Verdict::Deny).unwrap();
    let answer = xen.answers(1)[0];
    assert_eq!(flags(&answer) & !flag::ALTERNATE_P2M, flag::VCPU_PAUSED | flag::SET_REGISTERS);
    assert_eq!(word(&answer, 208), 0x1002);
    drop(driver);
    xen.is_clean();

    let (xen, driver, base) = unemulated(XSAVE, vec![], &Verdict::Deny);
    step(&xen, view(&xen.answers(2)[1]), 0x1003);
    xen.answers(3);
    while driver.views().unwrap().create().is_ok() {}
    xen.ask(access(base, 0x5008, 2, 0x5008));
    held(&*driver).answer(&Verdict::Deny).unwrap();
    xen.ask(request(reason::EMUL_UNIMPLEMENTED, 0, Some(base), &[], 0x1000));
    let answer = xen.answers(5)[4];
    assert_eq!((flags(&answer) & flag::SET_REGISTERS, word(&answer, 208)), (flag::SET_REGISTERS, 0x1003));
    drop(driver);
    xen.is_clean();
}

#[test]
fn whichever_call_of_a_step_fails_nothing_is_left() {
    let mut refused = 0;
    for fails in 0..12 {
        let (xen, driver, on) = on_a_view(MOV, ADD);
        let (made, waits) = (armed(&xen), access(on, 0x5008, 3, 0x5008));
        xen.ask(waits);
        let held = held(&*driver);
        xen.state.lock().fails_in = Some(fails);
        let answered = held.answer(&Verdict::Deny);
        xen.state.lock().fails_in = None;
        if let Err(failed) = answered {
            refused += 1;
            assert_eq!(armed(&xen), made, "call {fails}");
            failed.held.unwrap().answer(&Verdict::Continue).unwrap();
        }
        drop(driver);
        xen.is_clean();
    }
    assert!(refused >= 4, "only {refused} calls matter");
}

#[test]
fn a_step_that_is_not_done_before_the_end_writes_nothing() {
    let (xen, driver, on) = on_a_view(MOV, ADD);
    driver.registers().unwrap().write(VcpuId(0), &[(Reg::Rip.id(), RegValue::Word(0x1000))]).unwrap();
    xen.ask(access(on, 0x5008, 3, 0x5008));
    held(&*driver).answer(&Verdict::Deny).unwrap();
    xen.answers(1);
    drop(driver);
    assert_eq!(xen.register(0, RIP), 0x1002);
    xen.is_clean();
}

#[test]
fn a_switch_or_a_change_in_the_middle_is_not_undone() {
    let (xen, driver, on) = on_a_view(MOV, ADD);
    let views = driver.views().unwrap();
    xen.ask(access(on, 0x5008, 3, 0x5008));
    held(&*driver).answer(&Verdict::Deny).unwrap();
    let dry = view(&xen.answers(1)[0]);
    views.remap(ViewId(1), Gfn(9), Remap::Copy).unwrap();
    assert!(shown(&xen, dry).iter().any(|(frame, _)| *frame == 9));
    views.switch(None, ViewId(0)).unwrap();
    is_over(&xen, dry);
    assert_eq!(xen.state.lock().on, 0);
    drop(driver);
    xen.is_clean();
}

#[test]
fn one_that_another_one_steps_beside_comes_back_to_its_copies() {
    let xen = Shared::new(2);
    {
        let mut state = xen.state.lock();
        state.gdbsx = false;
        state.ran.extend([(0, 1), (1, 1)]);
    }
    let driver = open(&xen);
    driver.memory().write(Gpa(0x1000), XSAVE).unwrap();
    let rules = vec![Rule { view: ViewId(0), frames: Gfn(5)..Gfn(6), access: Access::READ, hold: true }];
    driver.events().unwrap().watch(&Wanted { watches: vec![], rules }).unwrap();
    let base = xen.state.lock().on;
    let of_1 = |mut slot: Slot| {
        slot[12] = 1;
        slot
    };
    xen.ask(of_1(access(base, 0x5008, 2, 0x5008)));
    held(&*driver).answer(&Verdict::Deny).unwrap();
    xen.ask(request(reason::EMUL_UNIMPLEMENTED, 1, Some(base), &[], 0x1000));
    let dry = view(&xen.answers(2)[1]);
    let xens = || {
        let fenced = || {
            Some(xen.state.lock()).filter(|state| state.on != base && state.pauses == 0).map(|state| state.on)
        };
        let on = (0..500).find_map(|_| {
            std::thread::sleep(Duration::from_millis(10));
            fenced()
        });
        let on = on.unwrap();
        assert_ne!(on, dry);
        for vcpu in [1, 0] {
            xen.ask(request(reason::MEM_ACCESS, vcpu, Some(on), &[1, 0, 0x1000, 0x44], 0x1000));
        }
        assert_eq!(view(&xen.answers(3)[2]), base);
        assert!(xen.state.lock().made.contains(&dry));
        xen.ask(request(reason::SINGLESTEP, 0, Some(base), &[1], 0x1001));
        let last: Vec<(u8, u16)> = xen.answers(5)[3..].iter().map(|slot| (slot[12], view(slot))).collect();
        assert_eq!(last, [(1, dry), (0, 0)], "who is there already is switched nowhere");
    };
    assert_eq!(stepping(&*driver, 1, xens).unwrap(), 1);
    xen.ask(request(reason::SINGLESTEP, 1, Some(dry), &[1], 0x1003));
    assert_eq!(view(&xen.answers(6)[5]), base);
    is_over(&xen, dry);
    drop(driver);
    xen.is_clean();
}
