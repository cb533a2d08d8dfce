//! Domains without alternate views: what Xen's emulator can't do is done with rights lifted, and what was denied is put back.

use std::sync::Arc;
use std::time::Duration;

use vmtree_api::events::{Verdict, Wanted};
use vmtree_api::views::Rule;
use vmtree_api::{Access, Driver, Gfn, Gpa, ViewId};

use super::events::open;
use super::fake::Shared;
use super::slots::{flags, request};
use crate::events::wire::{Slot, flag, reason};

/// A domain without alternate views, in which frames 5 and 6 have no rights; at 0x1000 there is this code.
fn ruled(code: &[u8]) -> (Arc<Shared>, Box<dyn Driver>) {
    let xen = Shared::new(2);
    xen.state.lock().altp2m = false;
    let driver = open(&xen);
    driver.memory().write(Gpa(0x1000), code).unwrap();
    driver.memory().write(Gpa(0x5ffe), b"guest").unwrap();
    let rules = vec![Rule { view: ViewId(0), frames: Gfn(5)..Gfn(7), access: Access::NONE, hold: true }];
    driver.events().unwrap().watch(&Wanted { watches: vec![], rules }).unwrap();
    (xen, driver)
}

/// An access; BX is 0x5fff.
fn access(gpa: u64, what: u64) -> Slot {
    let mut slot = request(reason::MEM_ACCESS, 0, None, &[gpa >> 12, gpa & 0xfff, gpa, what | 8], 0x1000);
    slot[80..88].copy_from_slice(&0x5fff_u64.to_le_bytes());
    slot
}

/// An access that the emulator is given, and can't do.
fn unemulated(xen: &Shared, driver: &dyn Driver, gpa: u64, what: u64, verdict: &Verdict) {
    let answered = xen.state.lock().responses.len();
    xen.ask(access(gpa, what));
    driver.events().unwrap().next(Duration::from_secs(5)).unwrap().unwrap().answer(verdict).unwrap();
    assert_ne!(flags(&xen.answers(answered + 1)[answered]) & flag::EMULATE, 0);
    xen.ask(request(reason::EMUL_UNIMPLEMENTED, 0, None, &[], 0x1000));
    assert_eq!(flags(&xen.answers(answered + 2)[answered + 1]), flag::VCPU_PAUSED);
}

fn rights(xen: &Shared) -> [Option<u8>; 2] {
    let state = xen.state.lock();
    [5, 6].map(|frame| state.access.get(&(0, frame)).copied())
}

fn at(driver: &dyn Driver) -> [u8; 5] {
    let mut buf = [0; 5];
    driver.memory().read(Gpa(0x5ffe), &mut buf).unwrap();
    buf
}

#[test]
fn what_an_instruction_writes_is_put_back_in_both_frames() {
    // xsave [bx]
    let (xen, driver) = ruled(&[0x0f, 0xae, 0x27]);
    unemulated(&xen, &*driver, 0x5fff, 2, &Verdict::Deny);
    assert_eq!((rights(&xen), &xen.state.lock().still[..]), ([Some(7), Some(0)], &[1][..]));
    // It comes to the next frame.
    unemulated(&xen, &*driver, 0x6000, 2, &Verdict::Deny);
    assert_eq!(rights(&xen), [Some(7), Some(7)]);
    driver.memory().write(Gpa(0x5fff), b"????").unwrap();
    xen.ask(request(reason::SINGLESTEP, 0, None, &[1], 0x1003));
    xen.answers(5);
    assert_eq!((rights(&xen), &at(&*driver)), ([Some(0), Some(0)], b"guest"));
    assert!(xen.state.lock().still.is_empty());
    drop(driver);
    xen.is_clean();
}

#[test]
fn a_value_is_in_memory_for_one_instruction() {
    // mov ax, [bx]
    let (xen, driver) = ruled(&[0x8b, 0x07]);
    unemulated(&xen, &*driver, 0x5fff, 1, &Verdict::Value(0x4241));
    assert_eq!(&at(&*driver), b"gABst");
    xen.ask(request(reason::SINGLESTEP, 0, None, &[1], 0x1002));
    xen.answers(3);
    assert_eq!((rights(&xen), &at(&*driver)), ([Some(0), Some(0)], b"guest"));
    drop(driver);
    xen.is_clean();
}

#[test]
fn what_is_continued_stays() {
    let (xen, driver) = ruled(&[0x0f, 0xae, 0x27]);
    // The emulator would do all of it, with the next frame, of which nobody was told then.
    for (gpa, lifted) in [(0x5fff, [Some(7), Some(0)]), (0x6000, [Some(7), Some(7)])] {
        let answered = xen.state.lock().responses.len();
        xen.ask(access(gpa, 2));
        let held = driver.events().unwrap().next(Duration::from_secs(5)).unwrap().unwrap();
        held.answer(&Verdict::Continue).unwrap();
        assert_eq!(flags(&xen.answers(answered + 1)[answered]), flag::VCPU_PAUSED);
        assert_eq!(rights(&xen), lifted);
    }
    driver.memory().write(Gpa(0x5fff), b"OURS").unwrap();
    xen.ask(request(reason::SINGLESTEP, 0, None, &[1], 0x1003));
    xen.answers(3);
    assert_eq!((rights(&xen), &at(&*driver)), ([Some(0), Some(0)], b"gOURS"));
    drop(driver);
    xen.is_clean();
}
