//! One instruction on another view, and what nobody can do.

use std::sync::Arc;
use std::time::Duration;

use vmtree_api::events::{Verdict, Wanted, Watch};
use vmtree_api::views::Rule;
use vmtree_api::{Access, Driver, Gfn, VcpuId, ViewId};

use super::events::open;
use super::fake::Shared;
use super::slots::{flags, request, view};
use crate::events::wire::{Slot, flag, reason};

/// Writes of frame 5 stop.
fn rules(watches: Vec<Watch>) -> Wanted {
    let rule = Rule { view: ViewId(0), frames: Gfn(5)..Gfn(6), access: Access::READ, hold: true };
    Wanted { watches, rules: vec![rule] }
}

fn access(vcpu: u32, base: u16) -> Slot {
    request(reason::MEM_ACCESS, vcpu, Some(base), &[5, 8, 0x5008, 2 | 8], 0x1000)
}

fn answer(driver: &dyn Driver, verdict: &Verdict) {
    driver.events().unwrap().next(Duration::from_secs(5)).unwrap().unwrap().answer(verdict).unwrap();
}

/// A domain whose emulator was given a write; Xen's number of the view with the rule.
fn emulated() -> (Arc<Shared>, Box<dyn Driver>, u16) {
    let xen = Shared::new(1);
    let driver = open(&xen);
    driver.events().unwrap().watch(&rules(vec![])).unwrap();
    let base = xen.state.lock().on;
    xen.ask(access(0, base));
    answer(&*driver, &Verdict::Deny);
    assert_ne!(flags(&xen.answers(1)[0]) & flag::EMULATE, 0);
    (xen, driver, base)
}

#[test]
fn an_answer_that_nobody_waits_for_switches_no_view() {
    let xen = Shared::new(2);
    let driver = open(&xen);
    let views = driver.views().unwrap();
    let made = views.create().unwrap();
    views.switch(Some(VcpuId(1)), made).unwrap();
    let mut told = request(reason::CPUID, 1, Some(0), &[2, 0], 0x1000);
    told[4..8].copy_from_slice(&flag::ALTERNATE_P2M.to_le_bytes());
    xen.ask(told);
    assert_eq!(flags(&xen.answers(1)[0]), 0);
    xen.ask(request(reason::SINGLESTEP, 1, Some(0), &[1], 0x1000));
    let answer = xen.answers(2)[1];
    assert_eq!((view(&answer), flags(&answer)), (1, flag::VCPU_PAUSED | flag::ALTERNATE_P2M));
    drop(driver);
    xen.is_clean();
}

#[test]
fn a_switch_is_not_lost_by_an_access_on_the_way() {
    let xen = Shared::new(2);
    let driver = open(&xen);
    driver.events().unwrap().watch(&rules(vec![])).unwrap();
    let base = xen.state.lock().on;
    let views = driver.views().unwrap();
    let before = xen.state.lock().made.clone();
    let made = views.create().unwrap();
    let new = *xen.state.lock().made.difference(&before).next().unwrap();
    views.switch(Some(VcpuId(1)), made).unwrap();
    xen.ask(access(1, base));
    answer(&*driver, &Verdict::Continue);
    let open = xen.answers(1)[0];
    assert_eq!(flags(&open), flag::VCPU_PAUSED | flag::ALTERNATE_P2M);
    xen.ask(request(reason::SINGLESTEP, 1, Some(view(&open)), &[1], 0x1000));
    assert_eq!(view(&xen.answers(2)[1]), new);
    drop(driver);
    xen.is_clean();
}

#[test]
fn what_nobody_can_do_is_an_undefined_instruction() {
    let (xen, driver, base) = emulated();
    // The emulator could: this comes of a later instruction.
    xen.ask(request(reason::CPUID, 0, Some(base), &[2, 0], 0x1000));
    xen.ask(request(reason::EMUL_UNIMPLEMENTED, 0, Some(base), &[], 0x1002));
    assert_eq!(flags(&xen.answers(3)[2]), flag::VCPU_PAUSED);
    let (vcpu, trap) = xen.state.lock().injected[0];
    assert_eq!((vcpu, trap.vector, trap.kind, trap.error), (0, 6, 3, None));
    drop(driver);
    xen.is_clean();
}
