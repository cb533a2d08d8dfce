//! Page faults with their error codes, A and D, stale translations.

use iced_x86::code_asm::*;

use super::{Bench, USER};
use crate::cpu::Stepped;
use crate::cpu::bits::{CR0_WP, CR4_SMAP, CR4_SMEP, RFLAGS_AC};

/// A page of its own: 2 MiB, entry 2 of the first page directory.
const PAGE: u64 = 0x40_0000;
const ENTRY: u64 = 0x3010;

#[derive(Clone, Copy)]
enum Try {
    Read,
    Write,
    Call,
}

/// Does one access to [`PAGE`] under these page flags; the error code of the page fault, or `None` where there is none.
fn access(flags: u64, what: Try, user: bool, setup: impl FnOnce(&mut Bench)) -> Option<u64> {
    let code = move |a: &mut CodeAssembler| {
        a.mov(rbx, PAGE + 8).unwrap();
        match what {
            Try::Read => a.mov(rax, qword_ptr(rbx)).unwrap(),
            Try::Write => a.mov(qword_ptr(rbx), rax).unwrap(),
            Try::Call => a.jmp(rbx).unwrap(),
        }
        a.int(0x80).unwrap();
    };
    let mut bench = Bench::new(code);
    // Where a call gets to: INT 0x80 as well.
    bench.put(PAGE + 8, 0x80cd);
    bench.handler(0x80, 0, 3, |a| {
        a.mov(rcx, u64::MAX).unwrap();
        a.hlt().unwrap();
    });
    bench.handler(14, 0, 0, |a| {
        a.pop(rcx).unwrap();
        a.mov(rdx, cr2).unwrap();
        a.hlt().unwrap();
    });
    bench.user(code);
    bench.put(ENTRY, PAGE | flags);
    if user {
        bench.enter_user();
    }
    setup(&mut bench);
    bench.run();
    let error = bench.regs().gpr[1];
    (error != u64::MAX).then(|| {
        assert_eq!(bench.regs().gpr[2], PAGE + 8, "CR2");
        error
    })
}

const P: u64 = 0x81;
const W: u64 = 2;
const U: u64 = 4;
const NX: u64 = 1 << 63;

#[test]
fn the_error_code_says_what_went_wrong() {
    let none = |_: &mut Bench| ();
    assert_eq!(access(0, Try::Read, false, none), Some(0));
    assert_eq!(access(0, Try::Write, false, none), Some(2));
    assert_eq!(access(0, Try::Call, false, none), Some(0x10));
    assert_eq!(access(P, Try::Write, false, none), Some(3), "WP holds for the kernel");
    assert_eq!(access(P, Try::Write, false, |bench| bench.regs().cr0 &= !CR0_WP), None);
    assert_eq!(access(P | W | NX, Try::Call, false, none), Some(0x11));
    assert_eq!(access(P | 1 << 13, Try::Read, false, none), Some(9), "a reserved bit");
    assert_eq!(access(P | W, Try::Read, true, none), Some(5));
    assert_eq!(access(P | U, Try::Write, true, none), Some(7));
    assert_eq!(access(0, Try::Read, true, none), Some(4));
    assert_eq!(access(P | U | NX, Try::Call, true, none), Some(0x15));
    assert_eq!(access(P | U | W, Try::Call, true, none), None);
}

#[test]
fn smep_and_smap_keep_the_kernel_out_of_user_pages() {
    assert_eq!(access(P | U, Try::Call, false, |_| ()), None);
    assert_eq!(access(P | U, Try::Call, false, |bench| bench.regs().cr4 |= CR4_SMEP), Some(0x11));
    assert_eq!(access(P | U, Try::Read, false, |bench| bench.regs().cr4 |= CR4_SMAP), Some(1));
    let allowed = |bench: &mut Bench| {
        bench.regs().cr4 |= CR4_SMAP;
        bench.regs().rflags |= RFLAGS_AC;
    };
    assert_eq!(access(P | U, Try::Read, false, allowed), None);
}

#[test]
fn accessed_and_dirty_are_set_as_the_access_wants() {
    let mut bench = Bench::new(|a| {
        a.mov(rbx, PAGE).unwrap();
        a.mov(rax, qword_ptr(rbx)).unwrap();
        a.hlt().unwrap();
        a.mov(qword_ptr(rbx), rax).unwrap();
        a.hlt().unwrap();
    });
    bench.run();
    assert_eq!(bench.word(ENTRY), PAGE | 0xa3, "A only");
    assert_eq!(bench.word(0x1000) & 0x60, 0x20, "A in the tables above, never D");
    bench.state.vcpus[0].activity = crate::cpu::vcpu::Activity::Running;
    bench.run();
    assert_eq!(bench.word(ENTRY), PAGE | 0xe3, "then D, though the translation was remembered");
}

#[test]
fn invlpg_and_cr3_forget_translations() {
    for by_cr3 in [false, true] {
        let mut bench = Bench::new(|a| {
            a.mov(rbx, PAGE).unwrap();
            a.mov(rax, qword_ptr(rbx)).unwrap();
            // The page now is the one at 6 MiB less 2, which holds something else.
            a.mov(qword_ptr(ENTRY), 0x20_0083).unwrap();
            if by_cr3 {
                a.mov(rcx, cr3).unwrap();
                a.mov(cr3, rcx).unwrap();
            } else {
                a.invlpg(byte_ptr(rbx)).unwrap();
            }
            a.mov(rdx, qword_ptr(rbx)).unwrap();
            a.hlt().unwrap();
        });
        bench.put(PAGE, 1);
        bench.put(USER, 2);
        bench.run();
        assert_eq!((bench.regs().gpr[0], bench.regs().gpr[2]), (1, 2));
    }
}

#[test]
fn an_access_over_a_page_border_is_done_whole_or_not_at_all() {
    let border = PAGE + (2 << 20);
    let mut bench = Bench::new(|a| {
        a.mov(rax, 0x1122_3344_5566_7788_u64).unwrap();
        a.mov(rbx, border - 4).unwrap();
        a.mov(qword_ptr(rbx), rax).unwrap();
        a.hlt().unwrap();
    });
    bench.handler(14, 0, 0, |a| {
        a.pop(rcx).unwrap();
        a.mov(rdx, cr2).unwrap();
        a.hlt().unwrap();
    });
    bench.put(ENTRY + 8, 0);
    bench.run();
    assert_eq!((bench.regs().gpr[1], bench.regs().gpr[2]), (2, border), "CR2 is the border");
    assert_eq!(bench.word(border - 8), 0, "nothing was written");
}

#[test]
fn code_that_is_written_is_run_as_it_is_now() {
    let target = 0x11_0000;
    let mut bench = Bench::new(|a| {
        a.mov(rbx, target).unwrap();
        // mov eax, 1; ret
        a.mov(rcx, 0xc300_0000_01b8_u64).unwrap();
        a.mov(qword_ptr(rbx), rcx).unwrap();
        a.call(rbx).unwrap();
        a.mov(rdx, rax).unwrap();
        a.mov(byte_ptr(rbx + 1), 2).unwrap();
        a.call(rbx).unwrap();
        a.hlt().unwrap();
        a.call(rbx).unwrap();
        a.hlt().unwrap();
    });
    bench.run();
    assert_eq!((bench.regs().gpr[2], bench.regs().gpr[0]), (1, 2));
    // And so is what is written from outside.
    assert!(bench.state.world.ram.store(target + 1, &[3]));
    bench.state.vcpus[0].activity = crate::cpu::vcpu::Activity::Running;
    bench.run();
    assert_eq!(bench.regs().gpr[0], 3);
}

#[test]
fn an_instruction_over_a_page_border_faults_only_if_it_needs_the_second_page() {
    let border = PAGE + (2 << 20);
    for (at, faults) in [(border - 1, false), (border - 4, true)] {
        let mut bench = Bench::new(|a| {
            a.mov(rbx, at).unwrap();
            a.jmp(rbx).unwrap();
        });
        bench.handler(14, 0, 0, |a| {
            a.mov(rdx, cr2).unwrap();
            a.hlt().unwrap();
        });
        bench.put(ENTRY + 8, 0);
        // HLT as the last byte; or a MOV of 10 bytes.
        let bytes: &[u8] = if faults { &[0x48, 0xb8, 1, 2] } else { &[0xf4] };
        assert!(bench.state.world.ram.store(at, bytes));
        bench.run();
        assert_eq!(bench.regs().gpr[2], if faults { border } else { 0 });
    }
}

#[test]
fn a_wild_jump_is_a_general_protection_fault() {
    let mut bench = Bench::new(|a| {
        a.mov(rbx, 0x8000_0000_0000_u64).unwrap();
        a.mov(rax, qword_ptr(rbx)).unwrap();
    });
    bench.handler(13, 0, 0, |a| {
        a.pop(rcx).unwrap();
        a.hlt().unwrap();
    });
    bench.regs().gpr[1] = 99;
    bench.run();
    assert_eq!(bench.regs().gpr[1], 0);
    assert_eq!(bench.state.step(0), Stepped::Idle);
}
