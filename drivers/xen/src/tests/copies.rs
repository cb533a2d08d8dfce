//! Xen's emulator reads the guest's own frames, while the vCPU is on a view that shows others.

use std::sync::Arc;
use std::time::Duration;

use vmtree_api::events::{EventKind, Held, Verdict, Wanted, Watch};
use vmtree_api::views::{Remap, Rule};
use vmtree_api::{Access, Driver, Gfn, Gpa};

use super::events::open;
use super::fake::Shared;
use super::slots::{flags, request, word};
use crate::events::wire::{flag, reason};

/// A domain on a view with a copy of frame 1, in which there is other code, and a rule on frames 5 and 6; Xen's number of it.
pub fn on_a_view(own: &[u8], copy: &[u8]) -> (Arc<Shared>, Box<dyn Driver>, u16) {
    let xen = Shared::new(1);
    let driver = open(&xen);
    let views = driver.views().unwrap();
    let made = views.create().unwrap();
    driver.memory().write(Gpa(0x1000), own).unwrap();
    views.remap(made, Gfn(1), Remap::Copy).unwrap();
    views.write(made, Gpa(0x1000), copy).unwrap();
    views.switch(None, made).unwrap();
    let on = xen.state.lock().on;
    let rules = vec![Rule { view: made, frames: Gfn(5)..Gfn(7), access: Access::NONE, hold: true }];
    let watch = |kind| Watch { kind, way: None, vcpu: None, index: None, hold: true };
    let watches = vec![watch(EventKind::Descriptor), watch(EventKind::Io)];
    driver.events().unwrap().watch(&Wanted { watches, rules }).unwrap();
    (xen, driver, on)
}

fn access(xen: &Shared, driver: &dyn Driver, on: u16, what: u64) -> Held {
    xen.ask(request(reason::MEM_ACCESS, 0, Some(on), &[5, 8, 0x5008, what | 8], 0x1000));
    driver.events().unwrap().next(Duration::from_secs(5)).unwrap().unwrap()
}

// In 16-bit code: add [bx], al; mov [bx], ax behind a prefix that does nothing.
const ADD: &[u8] = &[0x00, 0x07];
const LONG: &[u8] = &[0x3e, 0x89, 0x07];

#[test]
fn a_write_of_other_code_is_dropped_as_the_view_has_it() {
    let (xen, driver, on) = on_a_view(ADD, LONG);
    access(&xen, &*driver, on, 2).answer(&Verdict::Deny).unwrap();
    let answer = xen.answers(1)[0];
    assert_eq!(flags(&answer) & !flag::ALTERNATE_P2M, flag::VCPU_PAUSED | flag::SET_REGISTERS);
    assert_eq!(word(&answer, 208), 0x1003);
    access(&xen, &*driver, on, 2).answer(&Verdict::Value(0xbbaa)).unwrap();
    assert_eq!(word(&xen.answers(2)[1], 208), 0x1003);
    let mut put = [0; 2];
    driver.memory().read(Gpa(0x5008), &mut put).unwrap();
    assert_eq!(put, [0xaa, 0xbb]);
    drop(driver);
    xen.is_clean();
}

#[test]
fn where_the_code_is_the_same_the_emulator_denies() {
    let (xen, driver, on) = on_a_view(ADD, ADD);
    access(&xen, &*driver, on, 2).answer(&Verdict::Deny).unwrap();
    assert_ne!(flags(&xen.answers(1)[0]) & flag::EMULATE_NOWRITE, 0);
    drop(driver);
    xen.is_clean();
}

#[test]
fn other_code_is_emulated_as_the_view_has_it() {
    // sgdt [bx] and out dx, al; in the guest's own frame there is something else.
    for (copy, why, content) in [
        (&[0x0f, 0x01, 0x07][..], reason::DESCRIPTOR_ACCESS, [0, 0, 2]),
        (&[0xee], reason::IO_INSTRUCTION, [1 | 0x80 << 32, 0, 0]),
    ] {
        let (xen, driver, on) = on_a_view(&[0x90; 15], copy);
        xen.ask(request(why, 0, Some(on), &content, 0x1000));
        let held = driver.events().unwrap().next(Duration::from_secs(5)).unwrap().unwrap();
        held.answer(&Verdict::Continue).unwrap();
        let answer = xen.answers(1)[0];
        let emulated = flag::VCPU_PAUSED | flag::EMULATE | flag::SET_EMUL_INSN_DATA;
        assert_eq!(flags(&answer) & !flag::ALTERNATE_P2M, emulated);
        assert_eq!((answer[8], &answer[56..56 + copy.len()]), (reason::SOFTWARE_BREAKPOINT as u8, copy));
        drop(driver);
        xen.is_clean();
    }
}
