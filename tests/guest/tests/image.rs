//! The image itself: every instruction is one that the built-in machine executes, and the file is a sound ELF64.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;

use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use vmtree_guest::mailbox::{Counter, Op, Site};
use vmtree_guest::{asm, elf, layout};

/// What the built-in machine executes, by the kinds its issue lists: data movement, arithmetic, stack, branches,
/// strings, bits, locked exchanges, ports, system instructions, SSE moves. Only what the guest uses.
const KNOWN: &[Mnemonic] = &[
    // Data movement.
    Mnemonic::Mov,
    Mnemonic::Lea,
    Mnemonic::Xchg,
    // Arithmetic with flags.
    Mnemonic::Add,
    Mnemonic::Sub,
    Mnemonic::Inc,
    Mnemonic::Dec,
    Mnemonic::And,
    Mnemonic::Or,
    Mnemonic::Xor,
    Mnemonic::Cmp,
    Mnemonic::Test,
    Mnemonic::Shl,
    Mnemonic::Shr,
    Mnemonic::Xadd,
    Mnemonic::Div,
    // Bit operations.
    Mnemonic::Bt,
    Mnemonic::Btr,
    // Stack and branches.
    Mnemonic::Push,
    Mnemonic::Pop,
    Mnemonic::Pushfq,
    Mnemonic::Call,
    Mnemonic::Ret,
    Mnemonic::Jmp,
    Mnemonic::Je,
    Mnemonic::Jne,
    Mnemonic::Jb,
    Mnemonic::Jae,
    Mnemonic::Ja,
    Mnemonic::Jbe,
    Mnemonic::Nop,
    // Strings.
    Mnemonic::Movsb,
    Mnemonic::Movsq,
    Mnemonic::Stosb,
    Mnemonic::Stosq,
    Mnemonic::Lodsb,
    Mnemonic::Cmpsq,
    Mnemonic::Cld,
    // Ports and system.
    Mnemonic::In,
    Mnemonic::Out,
    Mnemonic::Cpuid,
    Mnemonic::Rdmsr,
    Mnemonic::Wrmsr,
    Mnemonic::Lgdt,
    Mnemonic::Lidt,
    Mnemonic::Lldt,
    Mnemonic::Ltr,
    Mnemonic::Sgdt,
    Mnemonic::Sidt,
    Mnemonic::Sldt,
    Mnemonic::Str,
    Mnemonic::Clts,
    Mnemonic::Lmsw,
    Mnemonic::Xsetbv,
    Mnemonic::Xgetbv,
    Mnemonic::Vmcall,
    Mnemonic::Invlpg,
    Mnemonic::Int3,
    Mnemonic::Int,
    Mnemonic::Iretq,
    Mnemonic::Syscall,
    Mnemonic::Sysretq,
    Mnemonic::Swapgs,
    Mnemonic::Hlt,
    Mnemonic::Pause,
    Mnemonic::Cli,
    Mnemonic::Sti,
    // SSE moves.
    Mnemonic::Movups,
    Mnemonic::Movaps,
];

fn mnemonics(part: &asm::Part) -> BTreeSet<String> {
    let mut decoder = Decoder::with_ip(part.bits, &part.bytes[..part.code], part.gva, DecoderOptions::NONE);
    let mut found = BTreeSet::new();
    for instruction in &mut decoder {
        assert!(!instruction.is_invalid(), "{} at {:#x}: no instruction", part.name, instruction.ip());
        if part.bits == 64 {
            let known = KNOWN.contains(&instruction.mnemonic());
            assert!(known, "{} at {:#x}: {:?} is not known", part.name, instruction.ip(), instruction.code());
        }
        found.insert(format!("{:?}", instruction.mnemonic()));
    }
    found
}

#[test]
fn every_instruction_is_known() {
    let code = asm::assemble().expect("the guest assembles");
    let used: BTreeSet<String> = code.parts.iter().flat_map(mnemonics).collect();
    for part in &code.parts {
        assert!(part.code > 0, "{} has no code", part.name);
    }
    for known in KNOWN {
        assert!(used.contains(&format!("{known:?}")), "{known:?} is not used: take it from the table");
    }
}

#[test]
fn parts_do_not_overlap() {
    let code = asm::assemble().expect("the guest assembles");
    for pair in code.parts.windows(2) {
        let end = pair[0].gpa + pair[0].bytes.len() as u64;
        assert!(end <= pair[1].gpa, "{} runs into {}", pair[0].name, pair[1].name);
    }
    let last = code.parts.last().expect("parts");
    assert!(last.gpa + last.bytes.len() as u64 <= layout::TEXT_END);
}

fn word(file: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(file[at..at + 8].try_into().unwrap())
}

#[test]
fn the_file_is_a_sound_elf64() {
    let file = elf();
    assert_eq!(&file[..4], b"\x7fELF");
    assert_eq!(word(&file, 24), layout::ENTRY);
    let headers = word(&file, 32) as usize;
    let count = usize::from(u16::from_le_bytes([file[56], file[57]]));
    let mut note = None;
    for n in 0..count {
        let at = headers + 56 * n;
        let kind = u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
        let (offset, virt, phys) = (word(&file, at + 8), word(&file, at + 16), word(&file, at + 24));
        let (in_file, in_memory) = (word(&file, at + 32), word(&file, at + 40));
        assert!(offset + in_file <= file.len() as u64);
        if kind == 4 {
            note = file.get(offset as usize..(offset + in_file) as usize);
        } else {
            assert_eq!((kind, virt), (1, phys));
            assert!(in_file <= in_memory && phys >= 1 << 20 && phys + in_memory <= 5 << 20);
            assert_eq!(offset % 0x1000, phys % 0x1000);
        }
    }
    let note = note.expect("a note");
    assert_eq!(&note[12..16], b"Xen\0");
    assert_eq!(note[8], 18);
    assert_eq!(u32::from_le_bytes(note[16..20].try_into().unwrap()), layout::TEXT32 as u32);
    assert_eq!(elf(), file, "always alike");
}

#[test]
fn the_documentation_has_every_order_counter_and_site() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guest.md")).unwrap();
    for op in Op::ALL {
        let row = format!("| {} | {} |", *op as u64, op.name());
        assert!(page.contains(&row), "docs/guest.md has no row {row}");
    }
    let words = page.split_whitespace().collect::<Vec<_>>().join(" ");
    let counters: Vec<_> = Counter::ALL.iter().map(|counter| counter.name()).collect();
    assert!(words.contains(&format!("in order: {}.", counters.join(", "))));
    let sites: Vec<_> = Site::ALL.iter().map(|site| site.name()).collect();
    assert!(words.contains(&format!("one word each: {}.", sites.join(", "))));
}
