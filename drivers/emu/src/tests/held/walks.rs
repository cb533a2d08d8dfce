//! Page walks go through the view, and so do the fetches of delivery.

use iced_x86::code_asm::*;
use vmtree_api::events::{Detail, Verdict};
use vmtree_api::views::{Remap, Rule};
use vmtree_api::{Access, Gfn, Gpa, Gva};

use super::super::Bench;
use super::page;
use crate::cpu::Stepped;

/// The page directory of the first GiB.
const DIRECTORY: u64 = 0x3000;

fn reading() -> Bench {
    let mut bench = Bench::new(|a| {
        a.mov(rax, qword_ptr(0x40_0000)).unwrap();
        a.hlt().unwrap();
    });
    bench.handler(14, 0, 0, |a| {
        a.pop(r14).unwrap();
        a.mov(r15, cr2).unwrap();
        a.hlt().unwrap();
    });
    bench.put(0x40_0000, 77);
    bench
}

/// Answers what comes before the walk for the data itself.
fn to_data(bench: &mut Bench) -> Detail {
    loop {
        let event = bench.held();
        if matches!(event.detail, Detail::Slat { gva: Some(Gva(0x40_0000)), .. }) {
            return event.detail;
        }
        bench.answer(Verdict::Continue);
    }
}

#[test]
fn a_walk_that_reads_a_guarded_table_is_an_event_with_the_address_it_is_for() {
    for (verdict, got, fault) in [
        (Verdict::Continue, 77, (0, 0)),
        // The entry maps another page.
        (Verdict::Value(0x20_0083), 55, (0, 0)),
        (Verdict::Value(0), 0, (0x40_0000, 0)),
        (Verdict::Deny, 0, (0x40_0000, 1)),
    ] {
        let mut bench = reading();
        bench.put(0x20_0000, 55);
        bench.rules(&[page(DIRECTORY, Access::EXECUTE)]);
        let (gpa, gva) = (Gpa(DIRECTORY + 16), Some(Gva(0x40_0000)));
        assert_eq!(to_data(&mut bench), Detail::Slat { access: Access::READ, gpa, gva, page_walk: true });
        bench.answer(verdict);
        while !matches!(bench.state.step(0), Stepped::Idle) {
            if bench.state.vcpus[0].trap.held.is_some() {
                bench.answer(Verdict::Continue);
            }
        }
        assert_eq!(bench.regs().gpr[0], got);
        assert_eq!((bench.regs().gpr[15], bench.regs().gpr[14]), fault);
    }
}

#[test]
fn setting_the_accessed_bit_is_a_write() {
    for (verdict, bits) in
        [(Verdict::Continue, 0xa3), (Verdict::Deny, 0x83), (Verdict::Value(0x40_0087), 0x87)]
    {
        let mut bench = reading();
        bench.rules(&[page(DIRECTORY, Access::READ)]);
        let (gpa, gva) = (Gpa(DIRECTORY + 16), Some(Gva(0x40_0000)));
        assert_eq!(to_data(&mut bench), Detail::Slat { access: Access::WRITE, gpa, gva, page_walk: true });
        bench.answer(verdict);
        bench.run();
        assert_eq!((bench.word(DIRECTORY + 16) & 0xff, bench.regs().gpr[0]), (bits, 77));
    }
}

#[test]
fn a_view_shows_the_walk_other_tables() {
    let mut bench = reading();
    let ram = bench.state.world.ram.clone();
    let slat = &mut bench.state.world.slat;
    let view = slat.create().unwrap();
    slat.remap(view, Gfn(3), Remap::Copy, |_, now, page| assert!(ram.load(now, page))).unwrap();
    let place = slat.place(view.0, DIRECTORY + 16);
    assert!(slat.store(place, &0x20_0083_u64.to_le_bytes()));
    bench.put(0x20_0000, 55);
    bench.state.vcpus[0].switch(view.0);
    bench.run();
    assert_eq!(bench.regs().gpr[0], 55);
    assert_eq!(bench.word(DIRECTORY + 16) & 0x20, 0, "A is set in the copy");
    let mut entry = [0];
    assert!(bench.state.world.slat.load(place, &mut entry));
    assert_eq!(entry[0] & 0x20, 0x20);
}

#[test]
fn a_frame_of_another_one_is_shown_for_all_uses() {
    let mut bench = Bench::new(|a| {
        a.mov(rbx, 0x20_0000_u64).unwrap();
        a.call(rbx).unwrap();
        a.mov(byte_ptr(rbx + 0x100), 7).unwrap();
        a.mov(al, byte_ptr(rbx + 0x100)).unwrap();
        a.hlt().unwrap();
    });
    bench.code(0x21_0000, |a| {
        a.mov(ecx, 3).unwrap();
        a.ret().unwrap();
    });
    let slat = &mut bench.state.world.slat;
    let view = slat.create().unwrap();
    slat.remap(view, Gfn(0x200), Remap::Frame(Gfn(0x210)), |_, _, _| panic!("no copy")).unwrap();
    bench.state.vcpus[0].switch(view.0);
    bench.run();
    assert_eq!((bench.regs().gpr[0] & 0xff, bench.regs().gpr[1]), (7, 3));
    assert_eq!((bench.word(0x21_0100), bench.word(0x20_0100)), (7, 0));
}

#[test]
fn a_stop_in_the_delivery_of_an_interrupt_is_resumed_there() {
    let mut bench = Bench::new(|a| {
        a.int(32).unwrap();
        a.hlt().unwrap();
    });
    bench.handler(32, 1, 0, |a| {
        a.inc(r15).unwrap();
        a.iretq().unwrap();
    });
    // The table of gates, the TSS and the stack.
    let rules: Vec<Rule> = [0x9000, 0xb000, 0xe000].map(|gpa| page(gpa, Access::NONE)).into();
    bench.rules(&rules);
    let mut seen = Vec::new();
    while bench.regs().gpr[15] == 0 {
        let Detail::Slat { access, gpa, .. } = bench.held().detail else { panic!() };
        seen.push((gpa.0, access));
        bench.answer(Verdict::Continue);
        while bench.state.step(0) == Stepped::Ran && bench.regs().gpr[15] == 0 {}
    }
    let expected = [(0x9200, Access::READ), (0x9208, Access::READ), (0xb024, Access::READ)];
    assert_eq!(seen[..3], expected);
    assert_eq!(seen[3..], [(0xefd8, Access::WRITE)]);
}
