//! What the CPU checks on transfers and at the gates, and its rarer system instructions.

use iced_x86::code_asm::*;

use super::{Bench, CODE, IST1, RSP0, TSS, USER, USER_CODE, USER_DATA};
use crate::cpu::bits::{CR0_TS, CR4_FSGSBASE, RFLAGS_IF, RFLAGS_NT, RFLAGS_TF};
use crate::ram::APIC_BASE;

fn idle(a: &mut CodeAssembler) {
    a.hlt().unwrap();
}

/// The vector and error code of the exception that this code ends with, at its last instruction, `at` bytes in.
fn ends(at: u64, code: impl FnOnce(&mut CodeAssembler), setup: impl FnOnce(&mut Bench)) -> (u64, u64) {
    let mut bench = Bench::new(code);
    for vector in [10_u8, 11, 12, 13] {
        bench.handler(vector, 1, 0, |a| {
            a.mov(r15d, i32::from(vector)).unwrap();
            a.hlt().unwrap();
        });
    }
    setup(&mut bench);
    bench.run();
    assert_eq!(bench.word(IST1 - 40), CODE + at, "the instruction itself");
    (bench.regs().gpr[15], bench.word(IST1 - 48))
}

/// IRETQ with these words on the stack, RIP first.
fn iretq(words: [u64; 5], setup: impl FnOnce(&mut Bench)) -> (u64, u64) {
    let stack = 0x7_0000;
    ends(
        0,
        |a| a.iretq().unwrap(),
        |bench| {
            for (index, word) in words.iter().enumerate() {
                bench.put(stack + 8 * index as u64, *word);
            }
            bench.regs().gpr[4] = stack;
            setup(bench);
        },
    )
}

#[test]
fn iretq_checks_where_it_goes() {
    let none = |_: &mut Bench| ();
    let user = [USER, USER_CODE, 2, USER, USER_DATA];
    let with = |index: usize, value: u64| {
        let mut words = user;
        words[index] = value;
        words
    };
    assert_eq!(iretq(user, |bench| bench.regs().rflags |= RFLAGS_NT), (13, 0), "NT");
    assert_eq!(iretq(with(0, 1 << 47), none), (13, 0), "RIP not canonical");
    assert_eq!(iretq(with(1, 0), none), (13, 0), "CS null");
    assert_eq!(iretq(with(1, 0x38), none), (13, 0x38), "CS beyond the table");
    assert_eq!(iretq(with(1, USER_DATA), none), (13, USER_DATA & 0xfc), "CS is data");
    assert_eq!(iretq(with(1, 0x24), none), (13, 0x24), "CS in an LDT that is not there");
    assert_eq!(iretq(with(4, 0), none), (13, 0), "SS null for ring 3");
    assert_eq!(iretq(with(4, 0x10), none), (13, 0x10), "SS of ring 0");
    assert_eq!(iretq(with(4, USER_CODE), none), (13, USER_CODE & 0xfc), "SS is code");
    let absent = |at: u64| {
        move |bench: &mut Bench| {
            let entry = bench.word(super::GDT + at);
            bench.put(super::GDT + at, entry & !(1 << 47));
        }
    };
    assert_eq!(iretq(user, absent(0x20)), (11, 0x20), "CS not present");
    assert_eq!(iretq(user, absent(0x18)), (12, 0x18), "SS not present");
}

#[test]
fn sysretq_faults_in_ring_0_where_rcx_is_not_canonical() {
    let bad = |bench: &mut Bench| bench.regs().gpr[1] = 1 << 47;
    assert_eq!(ends(0, |a| a.sysretq().unwrap(), bad), (13, 0));
}

#[test]
fn gates_are_checked() {
    let absent = |bench: &mut Bench| bench.gate(0x80, super::HANDLERS, 0, 0x0e);
    assert_eq!(ends(0, |a| a.int(0x80).unwrap(), absent), (11, 0x80 * 8 + 2), "not present");
    let task = |bench: &mut Bench| bench.gate(0x80, super::HANDLERS, 0, 0x85);
    assert_eq!(ends(0, |a| a.int(0x80).unwrap(), task), (13, 0x80 * 8 + 2), "no interrupt gate");
    let short = |bench: &mut Bench| bench.regs().idtr.limit = 0x80 * 16 + 14;
    assert_eq!(ends(0, |a| a.int(0x80).unwrap(), short), (13, 0x80 * 8 + 2), "beyond the limit");
    // An exception's own delivery is external to the program: EXT is set.
    assert_eq!(ends(0, |a| a.ud2().unwrap(), |_| ()), (13, 6 * 8 + 3));
    // The stack is looked for in a TSS that ends before it.
    let small = |bench: &mut Bench| {
        bench.gate(0x80, super::HANDLERS, 7, 0x8e);
        bench.regs().tr.limit = 0x5a;
    };
    assert_eq!(ends(0, |a| a.int(0x80).unwrap(), small), (10, 0x28));
    let wild = |bench: &mut Bench| {
        bench.gate(0x80, super::HANDLERS, 2, 0x8e);
        bench.put(TSS + 44, (1 << 47) + 0x1000);
    };
    assert_eq!(ends(0, |a| a.int(0x80).unwrap(), wild), (12, 0), "the stack is not canonical");
}

#[test]
fn int3_needs_the_gates_permission_and_int1_does_not() {
    for (code, vector) in [([0xcc_u8], 13), ([0xf1], 1)] {
        let mut bench = Bench::new(idle);
        bench.user(|a| a.db(&code).unwrap());
        bench.enter_user();
        for vector in [1_u8, 3, 13] {
            bench.handler(vector, 0, 0, |a| {
                a.mov(r15d, i32::from(vector)).unwrap();
                a.hlt().unwrap();
            });
        }
        bench.run();
        assert_eq!(bench.regs().gpr[15], vector);
        let top = if vector == 13 { (RSP0 - 48, 3 * 8 + 2) } else { (RSP0 - 40, USER + 1) };
        assert_eq!(bench.word(top.0), top.1);
    }
}

#[test]
fn a_load_of_ss_keeps_interrupts_and_traps_from_the_next_instruction() {
    let ready = |flag: u64, vector: u8| {
        let mut bench = Bench::new(|a| {
            a.mov(ss, eax).unwrap();
            a.inc(r14).unwrap();
            a.inc(r14).unwrap();
            a.hlt().unwrap();
        });
        bench.handler(vector, 0, 0, idle);
        bench.regs().gpr[0] = 0x10;
        bench.regs().rflags |= flag;
        bench
    };
    let mut bench = ready(RFLAGS_TF, 1);
    bench.run();
    assert_eq!(bench.regs().gpr[14], 1, "no trap between the load and the next instruction");
    for (early, instructions) in [(false, 1), (true, 0)] {
        let mut bench = ready(RFLAGS_IF, 0x51);
        if !early {
            bench.state.step(0);
        }
        // It comes before the load, or right after it.
        bench.state.world.write(0, APIC_BASE + 0xf0, &0x1ff_u32.to_le_bytes());
        bench.state.world.write(0, APIC_BASE + 0x300, &0x4_0051_u32.to_le_bytes());
        bench.run();
        assert_eq!(bench.regs().gpr[14], instructions);
    }
}

#[test]
fn a_fault_in_the_middle_of_a_string_can_be_continued() {
    // From 2 MiB less 4 over a page that is not there: the handler maps it and returns.
    let border = 0x40_0000;
    let mut bench = Bench::new(|a| {
        a.mov(rdi, border - 4_u64).unwrap();
        a.mov(ecx, 8).unwrap();
        a.mov(eax, 0x5a).unwrap();
        a.rep().stosb().unwrap();
        a.hlt().unwrap();
    });
    bench.handler(14, 0, 0, |a| {
        a.mov(r14, rcx).unwrap();
        a.mov(r15, cr2).unwrap();
        a.mov(rdx, border | 0x83).unwrap();
        a.mov(qword_ptr(0x3010), rdx).unwrap();
        a.add(rsp, 8).unwrap();
        a.iretq().unwrap();
    });
    bench.put(0x3010, 0);
    bench.run();
    assert_eq!((bench.regs().gpr[14], bench.regs().gpr[15]), (4, border), "4 rounds are done");
    assert_eq!((bench.regs().gpr[1], bench.regs().gpr[7]), (0, border + 4));
    assert_eq!(bench.word(border - 4), 0x5a5a_5a5a_5a5a_5a5a);
}

#[test]
fn rarer_registers_are_read_and_written() {
    let mut bench = Bench::new(|a| {
        a.clts().unwrap();
        a.mov(eax, 0x30).unwrap();
        a.lldt(eax).unwrap();
        a.sldt(r13d).unwrap();
        // The data segment of the GDT, seen through the LDT that lies over it.
        a.mov(eax, 0x14).unwrap();
        a.mov(ds, eax).unwrap();
        a.mov(rax, 0xffff_8000_0000_1000_u64).unwrap();
        a.wrfsbase(rax).unwrap();
        a.rdfsbase(r14).unwrap();
        a.wrgsbase(eax).unwrap();
        a.smsw(r15d).unwrap();
        a.hlt().unwrap();
    });
    bench.put(super::GDT + 0x30, 0x0000_8200_0000_0037 | super::GDT << 16);
    bench.put(super::GDT + 0x38, 0);
    let regs = bench.regs();
    regs.gdtr.limit = 0x3f;
    regs.cr0 |= CR0_TS;
    regs.cr4 |= CR4_FSGSBASE;
    bench.run();
    let regs = bench.regs();
    assert_eq!((regs.cr0 & CR0_TS, regs.gpr[13], regs.ds.selector, regs.ds.attr), (0, 0x30, 0x14, 0xc093));
    assert_eq!((regs.gpr[14], regs.gs.base), (0xffff_8000_0000_1000, 0x1000));
    assert_eq!(regs.gpr[15], 0x8005_0033);
    let off = |bench: &mut Bench| bench.handler(6, 1, 0, idle);
    let mut bench = Bench::new(|a| a.rdfsbase(rax).unwrap());
    off(&mut bench);
    bench.run();
    assert_eq!(bench.word(IST1 - 40), CODE, "#UD without FSGSBASE");
}
