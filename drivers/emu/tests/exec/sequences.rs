//! Short programs for what moves RSP or RIP, and can't be tried one instruction at a time: each ends at its end.

use vmtree_emu::cpu::Cpu;

use crate::machine::{DATA_LEN, Layout, Memory};
use crate::random::Random;
use crate::scene;

/// The names and bytes. A branch skips `lea r15, [r15+1]`, so that R15 shows whether it was taken.
pub fn all() -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> =
        FIXED.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
    let count = [0x4d, 0x8d, 0x7f, 0x01];
    for condition in 0..16 {
        let short = [&[0x70 | condition, 4], &count[..]].concat();
        let near = [&[0x0f, 0x80 | condition, 4, 0, 0, 0], &count[..]].concat();
        all.push((format!("jcc short {condition:x}"), short));
        all.push((format!("jcc near {condition:x}"), near));
    }
    // loopne, loope, loop, jrcxz; with 67 they use ECX.
    for opcode in 0xe0..=0xe3 {
        all.push((format!("loop {opcode:x}"), [&[opcode, 4], &count[..]].concat()));
        all.push((format!("loop, 32 bits {opcode:x}"), [&[0x67, opcode, 4], &count[..]].concat()));
        // mov ecx, 5 before; the branch goes back to the lea.
        let back = [&[0xb9, 5, 0, 0, 0][..], &count, &[opcode, 0xfa]].concat();
        if opcode != 0xe3 {
            all.push((format!("loop back {opcode:x}"), back));
        }
    }
    all
}

const FIXED: &[(&str, &[u8])] = &[
    ("push rax; pop rcx", &[0x50, 0x59]),
    ("push r12; pop r9", &[0x41, 0x54, 0x41, 0x59]),
    ("push ax; pop dx", &[0x66, 0x50, 0x66, 0x5a]),
    ("push rsp; pop rax", &[0x54, 0x58]),
    ("push rax; pop rsp; mov rsp, rsi", &[0x50, 0x5c, 0x48, 0x89, 0xf4]),
    ("push -2", &[0x6a, 0xfe]),
    ("push -0x12345678", &[0x68, 0x88, 0xa9, 0xcb, 0xed]),
    ("push word -2", &[0x66, 0x6a, 0xfe]),
    ("push word 0x1234", &[0x66, 0x68, 0x34, 0x12]),
    ("push [rsi+8]", &[0xff, 0x76, 0x08]),
    ("push word [rsi+8]", &[0x66, 0xff, 0x76, 0x08]),
    ("push [rsp+8]", &[0xff, 0x74, 0x24, 0x08]),
    ("pop [rsi-64]", &[0x8f, 0x46, 0xc0]),
    ("pop word [rsi-64]", &[0x66, 0x8f, 0x46, 0xc0]),
    ("pop [rsp+8]", &[0x8f, 0x44, 0x24, 0x08]),
    ("pop word [rsp+8]", &[0x66, 0x8f, 0x44, 0x24, 0x08]),
    ("pop [esp+8]", &[0x67, 0x8f, 0x44, 0x24, 0x08]),
    ("push/popfq of plain flags", &[0x25, 0xd5, 0x0c, 0, 0, 0x50, 0x9d]),
    ("push/popf of plain flags", &[0x25, 0xd5, 0x0c, 0, 0, 0x66, 0x50, 0x66, 0x9d]),
    ("pushfq; pop rax", &[0x9c, 0x58]),
    ("pushf; pop ax", &[0x66, 0x9c, 0x66, 0x58]),
    ("popfq with ID, IOPL, VIF and VIP", &[0x68, 0x02, 0x32, 0x38, 0, 0x9d, 0x9c, 0x58]),
    ("mov rbp, rsi; leave; mov rsp, rsi", &[0x48, 0x89, 0xf5, 0xc9, 0x48, 0x89, 0xf4]),
    ("mov rbp, rsi; leave (16 bits)", &[0x48, 0x89, 0xf5, 0x66, 0xc9]),
    ("call +0; pop rax", &[0xe8, 0, 0, 0, 0, 0x58]),
    ("lea rax, [rip+2]; call rax; pop rcx", &[0x48, 0x8d, 0x05, 2, 0, 0, 0, 0xff, 0xd0, 0x59]),
    (
        "lea rax, [rip+6]; mov [rsi], rax; call [rsi]; nop; pop rcx",
        &[0x48, 0x8d, 0x05, 6, 0, 0, 0, 0x48, 0x89, 0x06, 0xff, 0x16, 0x90, 0x59],
    ),
    (
        "lea rax, [rip+4]; push rax; ret; lea r15",
        &[0x48, 0x8d, 0x05, 6, 0, 0, 0, 0x50, 0xc3, 0x4d, 0x8d, 0x7f, 0x01],
    ),
    (
        "lea rax, [rip+8]; push rax; ret 24; lea r15",
        &[0x48, 0x8d, 0x05, 8, 0, 0, 0, 0x50, 0xc2, 24, 0, 0x4d, 0x8d, 0x7f, 0x01],
    ),
    (
        "lea rax, [rip+6]; jmp rax; lea r15",
        &[0x48, 0x8d, 0x05, 6, 0, 0, 0, 0xff, 0xe0, 0x4d, 0x8d, 0x7f, 0x01],
    ),
    (
        "lea rax, [rip+9]; mov [rsi], rax; jmp [rsi]; lea r15",
        &[0x48, 0x8d, 0x05, 9, 0, 0, 0, 0x48, 0x89, 0x06, 0xff, 0x26, 0x4d, 0x8d, 0x7f, 0x01],
    ),
    ("jmp short", &[0xeb, 4, 0x4d, 0x8d, 0x7f, 0x01]),
    ("jmp near", &[0xe9, 4, 0, 0, 0, 0x4d, 0x8d, 0x7f, 0x01]),
    ("jmp back", &[0xeb, 4, 0x4d, 0x8d, 0x7f, 0x01, 0x74, 0, 0x4d, 0x8d, 0x7f, 0x01]),
];

/// RSP and RSI in the middle of the data.
pub fn scene(layout: Layout, random: &mut Random) -> (Cpu, Memory) {
    let (mut cpu, memory) = scene::any(layout, random);
    let middle = layout.data + DATA_LEN as u64 / 2;
    cpu.regs.gpr[4] = middle + random.below(64);
    cpu.regs.gpr[6] = middle + 128 + random.below(64);
    if random.below(2) == 0 {
        cpu.regs.gpr[1] = random.below(3) | random.below(2) << 32;
    }
    (cpu, memory)
}
