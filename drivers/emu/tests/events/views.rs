//! Views of a running machine.

use iced_x86::code_asm::*;
use vmtree_api::events::{EventKind, Verdict, Wanted};
use vmtree_api::views::{Remap, Rule};
use vmtree_api::{Access, ErrorKind, Gfn, Gpa, VcpuId, ViewId};

use crate::bench::{V0, count, open, word};
use crate::{next, watch};

const ROUTINE: u64 = 0x30_0000;

/// Calls a routine, reads its first byte, counts, for ever.
fn hooked(a: &mut CodeAssembler) {
    let mut again = a.create_label();
    a.mov(rbx, 0x20_0000_u64).unwrap();
    a.mov(rsi, ROUTINE).unwrap();
    // inc qword [rbx]; ret
    a.mov(dword_ptr(rsi), 0xc303_ff48_u32 as i32).unwrap();
    a.set_label(&mut again).unwrap();
    a.call(rsi).unwrap();
    a.movzx(eax, byte_ptr(rsi)).unwrap();
    a.mov(qword_ptr(rbx + 8), rax).unwrap();
    a.jmp(again).unwrap();
}

#[test]
fn a_hidden_hook_is_run_into_and_never_read() {
    let driver = open(1, hooked);
    let (events, views) = (driver.events().unwrap(), driver.views().unwrap());
    while word(&*driver, 0x20_0000) < 10 {
        std::thread::yield_now();
    }
    let view = views.create().unwrap();
    views.remap(view, Gfn(ROUTINE >> 12), Remap::Copy).unwrap();
    let mut byte = [0];
    views.read(view, Gpa(ROUTINE), &mut byte).unwrap();
    assert_eq!(byte, [0x48], "a copy of what is there");
    views.write(view, Gpa(ROUTINE), &[0xcc]).unwrap();
    driver.memory().read(Gpa(ROUTINE), &mut byte).unwrap();
    assert_eq!(byte, [0x48], "outside the guest's map");
    let frames = Gfn(ROUTINE >> 12)..Gfn((ROUTINE >> 12) + 1);
    let rules = vec![Rule { view, frames, access: Access::EXECUTE, hold: true }];
    events.watch(&Wanted { watches: vec![watch(EventKind::Breakpoint, true)], rules }).unwrap();
    views.switch(None, view).unwrap();
    let before = word(&*driver, 0x20_0000);
    let (mut hits, mut reads) = (0, 0);
    while hits < 200 {
        let held = next(events);
        match held.event().kind {
            EventKind::Breakpoint => hits += 1,
            EventKind::Slat => reads += 1,
            other => panic!("{other}"),
        }
        held.answer(&Verdict::Step(Some(ViewId(0)))).unwrap();
        assert_eq!(word(&*driver, 0x20_0008), 0x48);
    }
    assert!(reads >= hits - 1);
    let held = next(events);
    assert!(word(&*driver, 0x20_0000) - before >= 199, "the routine did its work");
    assert_eq!(views.destroy(view).unwrap_err().kind(), ErrorKind::Busy);
    held.answer(&Verdict::View(ViewId(0))).unwrap();
    assert_eq!(views.current(V0).unwrap(), ViewId(0));
    views.destroy(view).unwrap();
}

#[test]
fn what_cant_be_is_refused() {
    let driver = open(1, count);
    let views = driver.views().unwrap();
    let view = views.create().unwrap();
    let none = ViewId(view.0 + 1);
    let kinds = |result: vmtree_api::Result<()>| result.unwrap_err().kind();
    assert_eq!(kinds(views.destroy(ViewId(0))), ErrorKind::Invalid);
    assert_eq!(kinds(views.destroy(none)), ErrorKind::NotFound);
    assert_eq!(kinds(views.remap(ViewId(0), Gfn(1), Remap::Copy)), ErrorKind::Invalid);
    assert_eq!(kinds(views.remap(none, Gfn(1), Remap::Copy)), ErrorKind::NotFound);
    for gfn in [0x600, 0xfee00, u64::MAX] {
        assert_eq!(kinds(views.remap(view, Gfn(gfn), Remap::Copy)), ErrorKind::NotFound);
        assert_eq!(kinds(views.remap(view, Gfn(1), Remap::Frame(Gfn(gfn)))), ErrorKind::NotFound);
    }
    assert_eq!(kinds(views.switch(None, none)), ErrorKind::NotFound);
    assert_eq!(kinds(views.switch(Some(VcpuId(1)), view)), ErrorKind::NotFound);
    assert_eq!(kinds(views.current(VcpuId(1)).map(drop)), ErrorKind::NotFound);
    assert_eq!(kinds(views.read(none, Gpa(0), &mut [0]).map(drop)), ErrorKind::NotFound);
    assert_eq!(kinds(views.read(view, Gpa(0x60_0000), &mut [0]).map(drop)), ErrorKind::NotFound);
    assert_eq!(kinds(views.write(view, Gpa(0xfff), &[0; 2]).map(drop)), ErrorKind::Invalid);
    while views.create().is_ok() {}
    assert_eq!(kinds(views.create().map(drop)), ErrorKind::NoSpace);
    views.destroy(ViewId(7)).unwrap();
    assert_eq!(views.create().unwrap(), ViewId(7));
}

#[test]
fn copies_are_at_most_as_many_as_frames() {
    let driver = open(1, |a| a.hlt().unwrap());
    let views = driver.views().unwrap();
    let (first, second) = (views.create().unwrap(), views.create().unwrap());
    let frames = (0..0x600).chain(0x10_0000..0x10_0200);
    for gfn in frames {
        views.remap(first, Gfn(gfn), Remap::Copy).unwrap();
    }
    views.remap(first, Gfn(5), Remap::Copy).unwrap();
    assert_eq!(views.remap(second, Gfn(5), Remap::Copy).unwrap_err().kind(), ErrorKind::NoSpace);
    views.remap(first, Gfn(9), Remap::None).unwrap();
    views.remap(second, Gfn(5), Remap::Copy).unwrap();
    views.destroy(first).unwrap();
    views.remap(second, Gfn(6), Remap::Copy).unwrap();
}
