//! SYSCALL and SYSRET, far transfers, and what user mode may not do.

use iced_x86::code_asm::*;

use super::{Bench, CODE, RSP0, USER};
use crate::cpu::bits::{EFER_SCE, RFLAGS_IF};

#[test]
fn a_system_call_goes_there_and_back() {
    let entry = 0x11_0000;
    let mut bench = Bench::new(|a| a.hlt().unwrap());
    bench.user(|a| {
        a.mov(eax, 7).unwrap();
        a.syscall().unwrap();
        a.mov(rbx, rax).unwrap();
        a.int(0x80).unwrap();
    });
    bench.code(entry, |a| {
        a.add(eax, 1).unwrap();
        a.mov(r15, rcx).unwrap();
        a.sysretq().unwrap();
    });
    bench.handler(0x80, 0, 3, |a| a.hlt().unwrap());
    bench.enter_user();
    let regs = bench.regs();
    regs.rflags |= RFLAGS_IF;
    regs.star = 0x0010_0008_0000_0000;
    regs.lstar = entry;
    regs.fmask = RFLAGS_IF;
    for _ in 0..3 {
        bench.state.step(0);
    }
    assert_eq!(bench.state.vcpus[0].cpu.cpl(), 0);
    assert_eq!((bench.regs().cs.selector, bench.regs().ss.selector), (8, 0x10));
    assert_eq!(bench.regs().rflags & RFLAGS_IF, 0, "FMASK");
    bench.run();
    assert_eq!((bench.regs().gpr[3], bench.regs().gpr[15]), (8, USER + 7));
    assert_eq!(bench.word(RSP0 - 32), 0x23);
    assert_eq!(bench.word(RSP0 - 24) & RFLAGS_IF, RFLAGS_IF);
}

#[test]
fn without_sce_there_are_no_system_calls() {
    let mut bench = Bench::new(|a| a.syscall().unwrap());
    bench.regs().efer &= !EFER_SCE;
    bench.handler(6, 0, 0, |a| a.hlt().unwrap());
    bench.run();
    assert_eq!(bench.regs().rip & !0xff, super::HANDLERS + 0x600);
}

#[test]
fn user_mode_may_not_touch_the_system() {
    type Code = fn(&mut CodeAssembler);
    let forbidden: [Code; 16] = [
        |a| a.hlt().unwrap(),
        |a| a.cli().unwrap(),
        |a| a.sti().unwrap(),
        |a| a.rdmsr().unwrap(),
        |a| a.wrmsr().unwrap(),
        |a| a.mov(rax, cr0).unwrap(),
        |a| a.mov(cr3, rax).unwrap(),
        |a| a.mov(rax, dr7).unwrap(),
        |a| a.lidt(ptr(rsp)).unwrap(),
        |a| a.lgdt(ptr(rsp)).unwrap(),
        |a| a.ltr(eax).unwrap(),
        |a| a.invlpg(byte_ptr(rsp)).unwrap(),
        |a| a.swapgs().unwrap(),
        |a| a.wbinvd().unwrap(),
        |a| a.in_(al, dx).unwrap(),
        |a| a.out(0x80, al).unwrap(),
    ];
    for (index, code) in forbidden.iter().enumerate() {
        let mut bench = Bench::new(|a| a.hlt().unwrap());
        bench.user(code);
        bench.enter_user();
        bench.regs().gpr[1] = 0xc000_0080;
        bench.handler(13, 0, 0, |a| a.hlt().unwrap());
        bench.run();
        assert_eq!((bench.word(RSP0 - 48), bench.word(RSP0 - 40)), (0, USER), "number {index}: #GP(0)");
    }
}

#[test]
fn the_io_bitmap_opens_single_ports() {
    let mut bench = Bench::new(|a| a.hlt().unwrap());
    bench.user(|a| {
        a.mov(edx, 0x3f8).unwrap();
        a.in_(al, dx).unwrap();
        a.inc(edx).unwrap();
        a.in_(al, dx).unwrap();
    });
    bench.enter_user();
    bench.handler(13, 0, 0, |a| a.hlt().unwrap());
    // The map lies at 0x68 of the TSS, and lets 0x3f8 through.
    bench.put(0xb000 + 0x68 + 0x3f8 / 8, 0xfffe);
    bench.regs().tr.limit = 0x1000;
    bench.run();
    assert_eq!(bench.regs().gpr[2], 0x3f9);
}

#[test]
fn a_far_return_reloads_the_code_segment() {
    let mut bench = Bench::new(|a| {
        a.push(8).unwrap();
        a.push((CODE + 0x100) as i32).unwrap();
        a.db(&[0x48, 0xcb]).unwrap(); // RETFQ
    });
    bench.code(CODE + 0x100, |a| {
        a.mov(rax, 0x20_0000_u64).unwrap();
        a.db(&[0x48, 0xff, 0x28]).unwrap(); // JMP m16:64 [RAX]
    });
    bench.code(CODE + 0x200, |a| a.hlt().unwrap());
    bench.put(0x20_0000, CODE + 0x200);
    bench.put(0x20_0008, 8);
    let stack = bench.regs().gpr[4];
    bench.run();
    assert_eq!((bench.regs().rip, bench.regs().gpr[4]), (CODE + 0x201, stack));
}
