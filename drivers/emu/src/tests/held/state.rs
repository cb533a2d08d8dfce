//! XCR0, XSAVE and XRSTOR.

use iced_x86::code_asm::*;
use vmtree_api::ErrorKind;
use vmtree_api::events::{Detail, EventKind, Move, Verdict};

use super::super::Bench;
use super::every;

const AREA: u64 = 0x20_0fc0;

fn enabled(a: &mut CodeAssembler) {
    a.mov(rax, cr4).unwrap();
    a.or(eax, 1 << 18).unwrap();
    a.mov(cr4, rax).unwrap();
    a.xor(ecx, ecx).unwrap();
    a.xor(edx, edx).unwrap();
    a.mov(eax, 3).unwrap();
    a.xsetbv().unwrap();
}

#[test]
fn xsetbv_is_watched() {
    for (verdict, value) in [(Verdict::Continue, 3), (Verdict::Deny, 1), (Verdict::Value(1), 1)] {
        let mut bench = Bench::watched(every(EventKind::Xcr0), |a| {
            enabled(a);
            a.xgetbv().unwrap();
        });
        assert_eq!(bench.held().detail, Detail::Control(Move::To { old: 1, new: 3 }));
        bench.refused(Verdict::Value(2), ErrorKind::Invalid);
        bench.answer(verdict);
        bench.run();
        assert_eq!((bench.regs().xcr0, bench.regs().gpr[0]), (value, value));
    }
}

#[test]
fn without_osxsave_it_is_no_instruction_and_cpuid_says_so() {
    let mut bench = Bench::new(|a| a.xgetbv().unwrap());
    bench.handler(6, 0, 0, |a| {
        a.mov(eax, 1).unwrap();
        a.cpuid().unwrap();
        a.mov(r15, rcx).unwrap();
        enabled(a);
        a.mov(eax, 1).unwrap();
        a.cpuid().unwrap();
        a.mov(r14, rcx).unwrap();
        a.mov(eax, 0xd).unwrap();
        a.xor(ecx, ecx).unwrap();
        a.cpuid().unwrap();
        a.hlt().unwrap();
    });
    bench.run();
    let bits = |word: u64| word >> 26 & 3;
    assert_eq!((bits(bench.regs().gpr[15]), bits(bench.regs().gpr[14])), (1, 3));
    assert_eq!(bench.regs().gpr[..4], [3, 576, 0, 576]);
}

/// Saves, changes and restores, over a page border.
fn saving() -> Bench {
    let mut bench = Bench::new(|a| {
        enabled(a);
        a.mov(rbx, AREA).unwrap();
        a.xsave64(ptr(rbx)).unwrap();
        a.pxor(xmm1, xmm1).unwrap();
        a.pxor(xmm15, xmm15).unwrap();
        a.xrstor64(ptr(rbx)).unwrap();
        // The SSE state of an area that has none is the first one; MXCSR is read all the same.
        a.movdqa(xmm2, xmm1).unwrap();
        a.mov(qword_ptr(rbx + 0x200), 1).unwrap();
        a.mov(byte_ptr(rbx), 0x11).unwrap();
        a.mov(byte_ptr(rbx + 40), 0x22).unwrap();
        a.xrstor64(ptr(rbx)).unwrap();
        a.lea(rbx, ptr(rbx + 0x400)).unwrap();
        a.xsave64(ptr(rbx)).unwrap();
        a.hlt().unwrap();
    });
    bench.state.vcpus[0].cpu.xmm[1] = 0x1111_2222_3333_4444_5555_6666_7777_8888;
    bench.state.vcpus[0].cpu.xmm[15] = 7;
    bench
}

#[test]
fn state_is_saved_and_restored() {
    let mut bench = saving();
    bench.run();
    assert_eq!(bench.word(AREA + 160 + 16), 0x5555_6666_7777_8888);
    assert_eq!(bench.word(AREA + 160 + 24), 0x1111_2222_3333_4444);
    assert_eq!(bench.word(AREA + 24), 0x0000_ffff_0000_1f80);
    let again = AREA + 0x400;
    assert_eq!((bench.word(again) & 0xffff, bench.word(again + 40) & 0xff), (0x0311, 0x22));
    assert_eq!(bench.word(again + 0x200), 1, "x87 is in use, SSE is not any more");
    assert_eq!(bench.word(again + 160 + 16), 0);
}

#[test]
fn a_stop_at_each_part_changes_nothing() {
    let mut plain = saving();
    plain.run();
    let read = |bench: &Bench| (0..0x800).map(|at| bench.word(AREA + at)).collect::<Vec<_>>();
    let mut bench = saving();
    let rule = super::page(AREA, vmtree_api::Access::EXECUTE);
    let frames = vmtree_api::Gfn(AREA >> 12)..vmtree_api::Gfn((AREA >> 12) + 2);
    bench.rules(&[vmtree_api::views::Rule { frames, ..rule }]);
    let mut events = 0;
    while bench.state.vcpus[0].activity == crate::cpu::vcpu::Activity::Running {
        bench.state.step(0);
        if bench.state.vcpus[0].trap.held.is_some() {
            events += 1;
            bench.answer(Verdict::Continue);
        }
    }
    assert!(events > 25, "{events}");
    assert!(read(&bench) == read(&plain) && bench.state.world.now() == plain.state.world.now());
}

#[test]
fn bad_areas_are_faults() {
    type Change = fn(&mut Bench);
    let changes: [(Change, u64); 4] = [
        (|bench| bench.put(AREA + 0x200, 4), 13),
        (|bench| bench.put(AREA + 0x208, 1 << 63), 13),
        (|bench| bench.put(AREA + 24, 1 << 16), 13),
        (|bench| bench.regs().cr0 |= 8, 7),
    ];
    for (change, vector) in changes {
        let mut bench = Bench::new(|a| {
            enabled(a);
            a.mov(rbx, AREA).unwrap();
            a.xrstor(ptr(rbx)).unwrap();
        });
        for vector in [7, 13] {
            bench.handler(vector, 0, 0, |a| {
                a.mov(r15d, u32::from(vector)).unwrap();
                a.hlt().unwrap();
            });
        }
        change(&mut bench);
        bench.run();
        assert_eq!(bench.regs().gpr[15], vector);
    }
}
