//! Rules that no comparison with a user program on the host CPU shows: privilege, control registers, segment bases,
//! rounds of strings, canonical targets, and what is left to others.

use iced_x86::{Decoder, DecoderOptions};
use vmtree_emu::cpu::exec::{Done, execute};
use vmtree_emu::cpu::{Cpu, Exception};

use crate::machine::{LAYOUT, Memory, decode, run, state, user_cpu};
use crate::random::Random;
use crate::scene;

const MIDDLE: u64 = LAYOUT.data + 512;
const NOT_AVAILABLE: Exception = Exception::plain(7);
const GP: Exception = Exception::protection(0);

/// A vCPU whose RSP, RSI and RDI point into the data.
fn cpu() -> Cpu {
    let mut cpu = user_cpu(LAYOUT.code);
    for pointer in [4, 6, 7] {
        cpu.regs.gpr[pointer] = MIDDLE;
    }
    cpu
}

fn one(cpu: &mut Cpu, memory: &mut Memory, code: &[u8]) -> Result<Done, Exception> {
    execute(cpu, memory, &decode(code, LAYOUT.code, cpu.regs.rip))
}

/// The exception that `code` raises; nothing else happens.
fn raised(cpu: &Cpu, code: &[u8]) -> Exception {
    let (mut after, mut memory) = (cpu.clone(), Memory::new(LAYOUT.data));
    let exception = one(&mut after, &mut memory, code).unwrap_err();
    assert_eq!(state(&after), state(cpu));
    assert!(memory.bytes.iter().all(|byte| *byte == 0));
    exception
}

#[test]
fn fs_and_gs_have_bases_and_no_other_segment_has() {
    let (mut cpu, mut memory) = (cpu(), Memory::new(LAYOUT.data));
    memory.bytes[..4].copy_from_slice(&[11, 22, 33, 44]);
    cpu.regs.fs.base = LAYOUT.data;
    cpu.regs.gs.base = LAYOUT.data.wrapping_sub(u64::from(u32::MAX));
    cpu.regs.ds.base = 0x9999_0000;
    cpu.regs.gpr[3] = u64::MAX;
    cpu.regs.gpr[6] = LAYOUT.data + 3;
    // mov al, fs:[rbx+2]; mov ah, gs:[ebx+1], whose sum wraps at 32 bits before the base is added;
    // movzx ecx, byte fs:[1], absolute; ds lodsb would use no base: mov dl, ds:[rsi].
    let code = [0x64, 0x8a, 0x43, 2, 0x65, 0x67, 0x8a, 0x63, 0];
    run(&mut cpu, &mut memory, &code, LAYOUT.code).unwrap();
    assert_eq!(cpu.regs.gpr[0], 11 << 8 | 22);
    cpu.regs.rip = LAYOUT.code;
    let code = [0x64, 0x0f, 0xb6, 0x0c, 0x25, 1, 0, 0, 0, 0x3e, 0x8a, 0x16];
    run(&mut cpu, &mut memory, &code, LAYOUT.code).unwrap();
    assert_eq!((cpu.regs.gpr[1], cpu.regs.gpr[2]), (22, 44));
    // fs lodsb reads there, and stosb writes at RDI without a base.
    cpu.regs.rip = LAYOUT.code;
    cpu.regs.gpr[6] = 2;
    run(&mut cpu, &mut memory, &[0x64, 0xac, 0xaa], LAYOUT.code).unwrap();
    assert_eq!((cpu.regs.gpr[0] & 0xff, memory.bytes[512]), (33, 33));
    // lea is without a base.
    cpu.regs.rip = LAYOUT.code;
    run(&mut cpu, &mut memory, &[0x64, 0x48, 0x8d, 0x46, 1], LAYOUT.code).unwrap();
    assert_eq!(cpu.regs.gpr[0], 4);
}

#[test]
fn a_repeated_string_does_one_round_at_a_time() {
    let (mut cpu, mut memory) = (cpu(), Memory::new(LAYOUT.data));
    let stosb = [0xf3, 0xaa];
    (cpu.regs.gpr[0], cpu.regs.gpr[1]) = (7, 2);
    assert_eq!(one(&mut cpu, &mut memory, &stosb), Ok(Done::Again));
    assert_eq!((cpu.regs.rip, cpu.regs.gpr[1], cpu.regs.gpr[7]), (LAYOUT.code, 1, MIDDLE + 1));
    assert_eq!(one(&mut cpu, &mut memory, &stosb), Ok(Done::Next));
    assert_eq!((cpu.regs.rip, cpu.regs.gpr[1]), (LAYOUT.code + 2, 0));
    assert_eq!(memory.bytes[512..515], [7, 7, 0]);
    cpu.regs.rip = LAYOUT.code;
    let before = cpu.clone();
    assert_eq!(one(&mut cpu, &mut memory, &stosb), Ok(Done::Next));
    assert_eq!(cpu.regs.gpr, before.regs.gpr);
}

#[test]
fn targets_must_be_canonical() {
    let (mut cpu, mut memory) = (cpu(), Memory::new(LAYOUT.data));
    let (lowest_bad, highest_bad) = (1 << 47, 0xffff_7fff_ffff_ffff);
    for target in [lowest_bad, highest_bad] {
        cpu.regs.gpr[0] = target;
        assert_eq!(raised(&cpu, &[0xff, 0xe0]), GP, "jmp rax");
        assert_eq!(raised(&cpu, &[0xff, 0xd0]), GP, "call rax");
    }
    memory.bytes[512..520].copy_from_slice(&lowest_bad.to_le_bytes());
    let before = cpu.clone();
    assert_eq!(one(&mut cpu, &mut memory, &[0xc3]), Err(GP));
    assert_eq!(state(&cpu), state(&before));
    // Five-level paging widens what is canonical; the upper half is canonical too.
    cpu.regs.cr4 |= 1 << 12;
    assert_eq!(one(&mut cpu, &mut memory, &[0xc3]), Ok(Done::Next));
    assert_eq!((cpu.regs.rip, cpu.regs.gpr[4]), (lowest_bad, MIDDLE + 8));
    (cpu.regs.cr4, cpu.regs.rip, cpu.regs.gpr[0]) = (1 << 9, LAYOUT.code, 0xffff_8000_0000_0000);
    assert_eq!(one(&mut cpu, &mut memory, &[0xff, 0xe0]), Ok(Done::Next));
    assert_eq!(cpu.regs.rip, 0xffff_8000_0000_0000);
}

#[test]
fn a_branch_off_the_lower_half_faults_and_a_loop_counts_not() {
    let end = (1u64 << 47) - 2;
    let mut cpu = cpu();
    (cpu.regs.rip, cpu.regs.gpr[1]) = (end, 5);
    let mut memory = Memory::new(LAYOUT.data);
    for code in [[0xeb, 0x10], [0xe2, 0x10]] {
        let before = cpu.clone();
        let outcome = execute(&mut cpu, &mut memory, &decode(&code, end, end));
        assert_eq!(outcome, Err(GP));
        assert_eq!(state(&cpu), state(&before));
    }
}

/// What POPFQ of all ones, and of zeros with them all set before, leaves at a privilege level.
fn popfq(cpl: u16, iopl: u64, wanted: u64) -> u64 {
    let (mut cpu, mut memory) = (cpu(), Memory::new(LAYOUT.data));
    cpu.regs.ss.attr = 0x93 | cpl << 5;
    cpu.regs.rflags = 2 | iopl << 12;
    memory.bytes[512..520].copy_from_slice(&wanted.to_le_bytes());
    assert_eq!(one(&mut cpu, &mut memory, &[0x9d]), Ok(Done::Next));
    assert_eq!(cpu.regs.gpr[4], MIDDLE + 8);
    cpu.regs.rflags
}

#[test]
fn popf_obeys_privilege() {
    // CF PF AF ZF SF TF DF OF NT AC ID and bit 1 are anyone's.
    let anyone = 0x24_4dd7;
    assert_eq!(popfq(3, 0, u64::MAX), anyone);
    assert_eq!(popfq(3, 3, u64::MAX), anyone | 0x3200, "IF, and IOPL as it was");
    assert_eq!(popfq(1, 0, u64::MAX), anyone);
    assert_eq!(popfq(0, 0, u64::MAX), anyone | 0x3200, "IF and IOPL");
    assert_eq!(popfq(0, 3, 0), 2);
    assert_eq!(popfq(3, 3, 0), 0x3002);
}

#[test]
fn pushf_hides_rf_and_vm() {
    let (mut cpu, mut memory) = (cpu(), Memory::new(LAYOUT.data));
    cpu.regs.rflags = 0x3_0202;
    assert_eq!(one(&mut cpu, &mut memory, &[0x9c]), Ok(Done::Next));
    assert_eq!(memory.bytes[504..512], 0x202u64.to_le_bytes());
}

#[test]
fn sse_obeys_the_control_registers() {
    let mut cpu = cpu();
    let (pxor, movaps, ldmxcsr) = ([0x66, 0x0f, 0xef, 0xc0], [0x0f, 0x28, 0x06], [0x0f, 0xae, 0x16]);
    for code in [&pxor[..], &movaps, &ldmxcsr] {
        (cpu.regs.cr0, cpu.regs.cr4) = (1, 0);
        assert_eq!(raised(&cpu, code), Exception::INVALID_OPCODE, "no OSFXSR");
        (cpu.regs.cr0, cpu.regs.cr4) = (1 | 1 << 2 | 1 << 3, 1 << 9);
        assert_eq!(raised(&cpu, code), Exception::INVALID_OPCODE, "EM");
        cpu.regs.cr0 = 1 | 1 << 3;
        assert_eq!(raised(&cpu, code), NOT_AVAILABLE, "TS");
    }
    // Fences, prefetches and MOVNTI don't use XMM.
    let mut memory = Memory::new(LAYOUT.data);
    let code = [0x0f, 0xae, 0xf0, 0x0f, 0x18, 0x0e, 0x0f, 0xc3, 0x06];
    run(&mut cpu, &mut memory, &code, LAYOUT.code).unwrap();
}

#[test]
fn vectors_in_memory_must_be_aligned() {
    let mut cpu = cpu();
    cpu.regs.gpr[6] += 8;
    let codes: [&[u8]; 5] = [
        &[0x0f, 0x28, 0x06],
        &[0x0f, 0x29, 0x06],
        &[0x66, 0x0f, 0x6f, 0x06],
        &[0x66, 0x0f, 0xef, 0x06],
        &[0x48, 0x0f, 0xc7, 0x0e],
    ];
    for code in codes {
        assert_eq!(raised(&cpu, code), GP, "{code:02x?}");
    }
    let (mut moved, mut memory) = (cpu, Memory::new(LAYOUT.data));
    run(&mut moved, &mut memory, &[0x0f, 0x10, 0x06, 0x0f, 0x11, 0x06], LAYOUT.code).unwrap();
}

#[test]
fn lock_needs_a_destination_in_memory() {
    let cpu = cpu();
    // lock add eax, ecx; lock mov [rsi], eax; lock cmp [rsi], eax; lock add eax, [rsi]; lock nop; lock hlt
    let codes: [&[u8]; 6] = [
        &[0xf0, 0x01, 0xc8],
        &[0xf0, 0x89, 0x06],
        &[0xf0, 0x39, 0x06],
        &[0xf0, 0x03, 0x06],
        &[0xf0, 0x90],
        &[0xf0, 0xf4],
    ];
    for code in codes {
        // By default iced takes such bytes for no instruction at all.
        for (options, outcome) in [
            (DecoderOptions::NONE, Ok(Done::NotHere)),
            (DecoderOptions::NO_INVALID_CHECK, Err(Exception::INVALID_OPCODE)),
        ] {
            let ins = Decoder::with_ip(64, code, LAYOUT.code, options).decode();
            let (mut after, mut memory) = (cpu.clone(), Memory::new(LAYOUT.data));
            memory.refuse = Some(0);
            assert_eq!(execute(&mut after, &mut memory, &ins), outcome, "{code:02x?}");
            assert_eq!(state(&after), state(&cpu));
        }
    }
}

#[test]
fn a_scan_of_zero_leaves_the_destination() {
    let (mut cpu, mut memory) = (cpu(), Memory::new(LAYOUT.data));
    (cpu.regs.gpr[0], cpu.regs.gpr[1]) = (u64::MAX, 0);
    // bsf eax, ecx; bsr rax, rcx
    run(&mut cpu, &mut memory, &[0x0f, 0xbc, 0xc1, 0x48, 0x0f, 0xbd, 0xc1], LAYOUT.code).unwrap();
    assert_eq!((cpu.regs.gpr[0], cpu.regs.rflags & 1 << 6), (u64::MAX, 1 << 6));
}

#[test]
fn division_errors_change_nothing() {
    let mut cpu = cpu();
    for (rdx, rax, rcx) in [(0, 5, 0), (3, 0, 3), (1 << 63, 0, u64::MAX), (u64::MAX, 1 << 63, u64::MAX)] {
        (cpu.regs.gpr[2], cpu.regs.gpr[0], cpu.regs.gpr[1]) = (rdx, rax, rcx);
        if rcx != u64::MAX {
            assert_eq!(raised(&cpu, &[0x48, 0xf7, 0xf1]), Exception::DIVIDE, "div of {rdx:x}:{rax:x}");
        }
        assert_eq!(raised(&cpu, &[0x48, 0xf7, 0xf9]), Exception::DIVIDE, "idiv of {rdx:x}:{rax:x}");
    }
}

#[test]
fn system_instructions_are_left_to_others() {
    let codes: [&[u8]; 40] = [
        &[0xe4, 0x60],
        &[0xee],
        &[0xf3, 0x6c],
        &[0xf4],
        &[0xfa],
        &[0xfb],
        &[0x0f, 0xa2],
        &[0x0f, 0x31],
        &[0x0f, 0x01, 0xf9],
        &[0x0f, 0x32],
        &[0x0f, 0x30],
        &[0x0f, 0x20, 0xc0],
        &[0x0f, 0x22, 0xd8],
        &[0x0f, 0x21, 0xc0],
        &[0x0f, 0x23, 0xf8],
        &[0x0f, 0x01, 0x16],
        &[0x0f, 0x01, 0x1e],
        &[0x0f, 0x01, 0x06],
        &[0x0f, 0x00, 0xd8],
        &[0x0f, 0x01, 0x3e],
        &[0x8e, 0xd8],
        &[0x8e, 0x1e],
        &[0x8c, 0xd8],
        &[0x8c, 0x1e],
        &[0x0f, 0xa0],
        &[0x0f, 0xa1],
        &[0x0f, 0xa8],
        &[0x0f, 0xa9],
        &[0xff, 0x2e],
        &[0xff, 0x1e],
        &[0xcb],
        &[0x48, 0xcf],
        &[0xcc],
        &[0xcd, 0x80],
        &[0x0f, 0x05],
        &[0x48, 0x0f, 0x07],
        &[0x0f, 0x01, 0xf8],
        &[0x0f, 0x0b],
        // What nobody knows: MMX, x87, and bytes that are no instruction.
        &[0x0f, 0xef, 0xc0],
        &[0x06],
    ];
    let mut random = Random(11);
    for code in codes {
        let (before, mut memory) = scene::any(LAYOUT, &mut random);
        let (mut cpu, bytes) = (before.clone(), memory.bytes.clone());
        memory.refuse = Some(0);
        assert_eq!(one(&mut cpu, &mut memory, code), Ok(Done::NotHere), "{code:02x?}");
        assert_eq!(state(&cpu), state(&before), "{code:02x?}");
        assert_eq!(memory.bytes, bytes);
    }
}

#[test]
fn no_bytes_make_it_panic_and_an_exception_changes_nothing() {
    let mut random = Random(13);
    for _ in 0..400_000 {
        let code: Vec<u8> = (0..16).map(|_| random.next() as u8).collect();
        let (before, mut memory) = scene::any(LAYOUT, &mut random);
        let mut cpu = before.clone();
        match one(&mut cpu, &mut memory, &code) {
            Ok(Done::Next | Done::Again) => {}
            Ok(Done::NotHere) | Err(_) => assert_eq!(state(&cpu), state(&before), "{code:02x?}"),
        }
    }
}
