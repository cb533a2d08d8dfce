//! Exceptions, interrupts, the timer, double and triple faults, single steps.

use iced_x86::code_asm::*;

use super::{Bench, CODE, IST1, RSP0, USER, USER_CODE, USER_DATA};
use crate::cpu::Stepped;
use crate::cpu::bits::{DR6_BS, RFLAGS_IF, RFLAGS_RF};
use crate::ram::APIC_BASE;

fn idle(a: &mut CodeAssembler) {
    a.hlt().unwrap();
}

#[test]
fn an_exception_from_user_mode_gets_the_kernels_stack_and_frame() {
    let mut bench = Bench::new(idle);
    bench.user(|a| {
        a.nop().unwrap();
        a.ud2().unwrap();
    });
    bench.enter_user();
    bench.handler(6, 0, 0, idle);
    let flags = bench.regs().rflags;
    bench.run();
    assert_eq!(bench.regs().gpr[4], RSP0 - 40);
    let frame: Vec<u64> = (0..5).map(|index| bench.word(RSP0 - 40 + index * 8)).collect();
    assert_eq!(frame, [USER + 1, USER_CODE, flags | RFLAGS_RF, USER + 0x10_0000, USER_DATA]);
    assert_eq!((bench.regs().cs.selector, bench.regs().ss.selector), (8, 0));
    assert_eq!(bench.state.vcpus[0].cpu.cpl(), 0);
}

#[test]
fn a_software_interrupt_needs_the_gates_permission() {
    for (dpl, vector, error) in [(3, 0x80, None), (0, 13, Some(0x80 * 8 + 2))] {
        let mut bench = Bench::new(idle);
        bench.user(|a| a.int(0x80).unwrap());
        bench.enter_user();
        bench.handler(0x80, 0, dpl, |a| {
            a.mov(eax, 0x80).unwrap();
            a.hlt().unwrap();
        });
        bench.handler(13, 0, 0, |a| {
            a.mov(eax, 13).unwrap();
            a.pop(rcx).unwrap();
            a.hlt().unwrap();
        });
        bench.run();
        assert_eq!(bench.regs().gpr[0], vector);
        match error {
            Some(error) => {
                assert_eq!((bench.regs().gpr[1], bench.word(RSP0 - 40)), (error, USER), "the INT itself")
            }
            None => assert_eq!(bench.word(RSP0 - 40), USER + 2, "behind the INT"),
        }
    }
}

#[test]
fn a_fault_without_a_handler_is_a_double_fault_on_its_own_stack() {
    let mut bench = Bench::new(|a| {
        a.mov(rax, qword_ptr(0x40_0000)).unwrap();
    });
    bench.put(0x3010, 0);
    bench.handler(8, 1, 0, idle);
    bench.run();
    assert_eq!(bench.regs().gpr[4], IST1 - 48);
    assert_eq!(bench.word(IST1 - 48), 0, "the error code");
    assert_eq!(bench.word(IST1 - 40), CODE, "the faulting instruction");
    assert_eq!(bench.regs().cr2, 0x40_0000);
}

#[test]
fn a_bad_stack_is_a_double_fault_too() {
    let mut bench = Bench::new(|a| {
        a.mov(rsp, 0x40_1000_u64).unwrap();
        a.ud2().unwrap();
    });
    bench.put(0x3010, 0);
    bench.handler(6, 0, 0, idle);
    bench.handler(14, 0, 0, idle);
    bench.handler(8, 1, 0, idle);
    bench.run();
    assert_eq!(bench.regs().gpr[4], IST1 - 48, "#UD, then #PF twice");
}

#[test]
fn no_handler_at_all_is_the_end() {
    let mut bench = Bench::new(|a| a.ud2().unwrap());
    assert_eq!(bench.state.step(0), Stepped::Dead);
    assert_eq!(bench.state.step(0), Stepped::Dead, "for good");
    assert_eq!(bench.state.end(0), format!("triple fault on vCPU 0 at rip {CODE:#x}"));
}

/// Sets up the timer: vector 0x40, `count` of 10 ns.
fn timer(a: &mut CodeAssembler, count: u32, mode: u32) {
    a.mov(rbx, APIC_BASE).unwrap();
    a.mov(dword_ptr(rbx + 0xf0), 0x1ff).unwrap();
    a.mov(dword_ptr(rbx + 0x320), 0x40 | mode).unwrap();
    a.mov(dword_ptr(rbx + 0x3e0), 0xb).unwrap();
    a.mov(dword_ptr(rbx + 0x380), count).unwrap();
}

#[test]
fn the_timer_wakes_a_halted_vcpu_once_or_again_and_again() {
    for (mode, rounds) in [(0, 1), (1 << 17, 3)] {
        let mut bench = Bench::new(|a| {
            timer(a, 1000, mode);
            a.sti().unwrap();
            let mut again = a.create_label();
            a.set_label(&mut again).unwrap();
            a.hlt().unwrap();
            a.jmp(again).unwrap();
        });
        bench.handler(0x40, 0, 0, |a| {
            a.inc(r15).unwrap();
            a.mov(dword_ptr(rbx + 0xb0), 0).unwrap();
            a.iretq().unwrap();
        });
        let started = 5 * 10;
        for round in 1..=rounds {
            bench.run();
            assert_eq!(bench.regs().gpr[15], round - 1);
            let time = bench.state.wakes(0).unwrap();
            bench.state.skip(time);
            assert_eq!(bench.state.world.now(), started - 10 + round * 10_000, "to the nanosecond");
        }
        bench.run();
        assert_eq!(bench.regs().gpr[15], rounds);
        assert_eq!(bench.state.wakes(0).is_some(), mode != 0);
    }
}

#[test]
fn an_interrupt_waits_for_the_instruction_after_sti_and_for_if() {
    let mut bench = Bench::new(|a| {
        timer(a, 1, 0);
        a.nop().unwrap();
        a.nop().unwrap();
        a.sti().unwrap();
        a.inc(r14).unwrap();
        a.inc(r14).unwrap();
    });
    bench.handler(0x40, 0, 0, idle);
    bench.run();
    assert_eq!(bench.regs().gpr[14], 1);
    assert_eq!(bench.regs().rflags & RFLAGS_IF, 0, "an interrupt gate clears IF");
}

#[test]
fn cr8_holds_interrupts_back() {
    let mut bench = Bench::new(|a| {
        a.mov(eax, 4).unwrap();
        a.mov(cr8, rax).unwrap();
        timer(a, 1, 0);
        a.sti().unwrap();
        a.mov(r13, cr8).unwrap();
        a.inc(r14).unwrap();
        a.mov(ecx, dword_ptr(rbx + 0x80)).unwrap();
        a.xor(eax, eax).unwrap();
        a.mov(cr8, rax).unwrap();
        a.inc(r14).unwrap();
    });
    bench.handler(0x40, 0, 0, idle);
    bench.run();
    assert_eq!((bench.regs().gpr[14], bench.regs().gpr[13], bench.regs().gpr[1]), (1, 4, 0x40));
}

#[test]
fn the_trap_flag_traps_after_each_instruction() {
    let mut bench = Bench::new(|a| {
        a.pushfq().unwrap();
        a.or(dword_ptr(rsp), 0x100).unwrap();
        a.popfq().unwrap();
        a.inc(rax).unwrap();
        a.inc(rax).unwrap();
        a.hlt().unwrap();
    });
    bench.handler(1, 0, 0, |a| {
        a.inc(r15).unwrap();
        a.mov(r14, dr6).unwrap();
        a.cmp(r15, 3).unwrap();
        let mut end = a.create_label();
        a.je(end).unwrap();
        a.iretq().unwrap();
        a.set_label(&mut end).unwrap();
        a.hlt().unwrap();
    });
    bench.run();
    assert_eq!((bench.regs().gpr[15], bench.regs().gpr[0]), (3, 2), "INC, INC and HLT");
    assert_eq!(bench.regs().gpr[14] & DR6_BS, DR6_BS);
}

#[test]
fn iretq_goes_to_user_mode_and_empties_kernel_segments() {
    let mut bench = Bench::new(|a| {
        for word in [USER_DATA, USER + 0x10_0000, 0x202, USER_CODE, USER] {
            a.push(word as i32).unwrap();
        }
        a.iretq().unwrap();
    });
    bench.user(|a| a.hlt().unwrap());
    bench.handler(13, 0, 0, idle);
    bench.run();
    assert_eq!(bench.word(RSP0 - 48), 0, "HLT in user mode is #GP(0)");
    assert_eq!((bench.word(RSP0 - 40), bench.word(RSP0 - 32)), (USER, USER_CODE));
    assert_eq!((bench.regs().ds.selector, bench.regs().ds.attr), (0, 0));
}

#[test]
fn an_nmi_waits_for_the_end_of_another() {
    let mut bench = Bench::new(|a| {
        a.mov(rbx, APIC_BASE).unwrap();
        a.mov(dword_ptr(rbx + 0x300), 0x4_0400).unwrap();
        a.hlt().unwrap();
    });
    bench.handler(2, 0, 0, |a| {
        a.inc(r15).unwrap();
        a.cmp(r15, 1).unwrap();
        let mut end = a.create_label();
        a.jne(end).unwrap();
        a.mov(dword_ptr(rbx + 0x300), 0x4_0400).unwrap();
        a.mov(r14, r15).unwrap();
        a.set_label(&mut end).unwrap();
        a.iretq().unwrap();
    });
    bench.run();
    assert_eq!((bench.regs().gpr[15], bench.regs().gpr[14]), (2, 1));
}
