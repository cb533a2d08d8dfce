//! Addresses that are not canonical: #SS(0) for the stack segment, #GP(0) for every other.

use iced_x86::code_asm::r15d;

use super::{Bench, CODE, IST1};

/// The lowest address that is not canonical.
const BAD: u64 = 1 << 47;

/// The vector that this code raises with error code 0 at its first instruction, with RBX, RBP and the stack out of bounds.
fn raised(code: &[u8]) -> u8 {
    let mut bench = Bench::new(|a| a.hlt().unwrap());
    assert!(bench.state.world.ram.store(CODE, code));
    for vector in [12, 13] {
        bench.handler(vector, 1, 0, |a| {
            a.mov(r15d, i32::from(vector)).unwrap();
            a.hlt().unwrap();
        });
    }
    for register in [3, 4, 5] {
        bench.regs().gpr[register] = BAD;
    }
    bench.run();
    assert_eq!((bench.word(IST1 - 48), bench.word(IST1 - 40)), (0, CODE), "{code:02x?}");
    bench.regs().gpr[15] as u8
}

#[test]
fn accesses_to_the_stack_are_stack_faults() {
    let stack: [&[u8]; 22] = [
        &[0x58],                         // pop rax
        &[0x48, 0x8b, 0x04, 0x24],       // mov rax, [rsp]
        &[0x48, 0x8b, 0x45, 0x00],       // mov rax, [rbp]
        &[0x48, 0x89, 0x45, 0x00],       // mov [rbp], rax
        &[0x48, 0x01, 0x45, 0x00],       // add [rbp], rax
        &[0x3e, 0x48, 0x8b, 0x45, 0x00], // mov rax, ds:[rbp]: the prefix is ignored
        &[0x48, 0x0f, 0xab, 0x45, 0x00], // bts [rbp], rax
        &[0x0f, 0x28, 0x45, 0x00],       // movaps xmm0, [rbp]
        &[0x0f, 0x11, 0x45, 0x00],       // movups [rbp], xmm0
        &[0x48, 0x0f, 0xc7, 0x4d, 0x00], // cmpxchg16b [rbp]
        &[0xff, 0x65, 0x00],             // jmp [rbp]
        &[0xff, 0x75, 0x00],             // push [rbp]
        &[0x8e, 0x5d, 0x00],             // mov ds, [rbp]
        &[0x8c, 0x5d, 0x00],             // mov [rbp], ds
        &[0x0f, 0x01, 0x55, 0x00],       // lgdt [rbp]
        &[0x0f, 0x01, 0x45, 0x00],       // sgdt [rbp]
        &[0x48, 0xff, 0x6d, 0x00],       // jmp m16:64 [rbp]
        &[0xc9],                         // leave
        &[0xc3],                         // ret
        &[0x9d],                         // popf
        &[0x48, 0xcf],                   // iretq
        &[0x0f, 0xa9],                   // pop gs
    ];
    for code in stack {
        assert_eq!(raised(code), 12, "{code:02x?}");
    }
}

#[test]
fn a_push_below_the_lower_half_is_a_stack_fault() {
    // RSP is 8 above the first byte that is out of bounds, less than what each pushes.
    for code in [&[0x50][..], &[0x9c], &[0xe8, 0, 0, 0, 0], &[0x0f, 0xa8], &[0xff, 0xd0]] {
        let mut bench = Bench::new(|a| a.hlt().unwrap());
        assert!(bench.state.world.ram.store(CODE, code));
        bench.handler(12, 1, 0, |a| a.hlt().unwrap());
        bench.regs().gpr[4] = BAD + 8;
        bench.run();
        assert_eq!((bench.word(IST1 - 48), bench.word(IST1 - 40)), (0, CODE), "{code:02x?}");
        assert_eq!(bench.word(IST1 - 16), BAD + 8, "RSP stays");
    }
}

#[test]
fn other_accesses_are_general_protection_faults() {
    let others: [&[u8]; 7] = [
        &[0x48, 0x8b, 0x03],             // mov rax, [rbx]
        &[0x36, 0x48, 0x8b, 0x03],       // mov rax, ss:[rbx]: the prefix is ignored
        &[0x64, 0x48, 0x8b, 0x45, 0x00], // mov rax, fs:[rbp]
        &[0x48, 0x8b, 0x04, 0x2b],       // mov rax, [rbx+rbp]: RBX is the base
        &[0x8f, 0x03],                   // pop [rbx], with a good stack
        &[0xff, 0x33],                   // push [rbx]
        &[0x0f, 0x28, 0x03],             // movaps xmm0, [rbx]
    ];
    for code in others {
        let mut bench = Bench::new(|a| a.hlt().unwrap());
        assert!(bench.state.world.ram.store(CODE, code));
        bench.handler(13, 1, 0, |a| a.hlt().unwrap());
        (bench.regs().gpr[3], bench.regs().gpr[5]) = (BAD, BAD);
        if code == [0x48, 0x8b, 0x04, 0x2b] {
            bench.regs().gpr[5] = 0;
        }
        bench.run();
        assert_eq!((bench.word(IST1 - 48), bench.word(IST1 - 40)), (0, CODE), "{code:02x?}");
    }
}
