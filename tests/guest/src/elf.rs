//! Writes the ELF64 file: two segments, the PVH note and a symbol table.

use crate::asm::Code;
use crate::layout;
use crate::mailbox::GREETING_TEXT;

const PAGE: u64 = 0x1000;
const HEADER: u16 = 64;
const PROGRAM_HEADER: u16 = 56;
const SECTION_HEADER: u16 = 64;
const SYMBOL: u64 = 24;
/// Where the first segment starts in the file.
const TEXT_AT: u64 = PAGE;
/// XEN_ELFNOTE_PHYS32_ENTRY (Xen, public/elfnote.h).
const PHYS32_ENTRY: u32 = 18;

/// One entry of the program header table (System V ABI, ELF-64: all but type and flags are 64-bit).
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    in_file: u64,
    in_memory: u64,
}

/// The whole file.
pub fn write(code: &Code) -> Vec<u8> {
    let text = place(
        code.parts.iter().map(|part| (part.gpa, part.bytes.as_slice())),
        layout::TEXT32,
        layout::TEXT_END,
    );
    let data = data();
    let data_at = TEXT_AT + text.len() as u64;
    let note = note();
    let note_at = u64::from(HEADER) + 3 * u64::from(PROGRAM_HEADER);
    let segments = [
        Segment {
            kind: 1,
            flags: 7,
            offset: TEXT_AT,
            address: layout::TEXT32,
            in_file: text.len() as u64,
            in_memory: text.len() as u64,
        },
        Segment {
            kind: 1,
            flags: 6,
            offset: data_at,
            address: crate::mailbox::MAILBOX,
            in_file: data.len() as u64,
            in_memory: layout::END - crate::mailbox::MAILBOX,
        },
        Segment { kind: 4, flags: 4, offset: note_at, address: 0, in_file: 20, in_memory: 20 },
    ];
    let sections_at = data_at + data.len() as u64;
    let mut file = header(sections_at);
    for segment in segments {
        file.extend(segment.kind.to_le_bytes());
        file.extend(segment.flags.to_le_bytes());
        let words = [segment.offset, segment.address, segment.address, segment.in_file, segment.in_memory];
        words.iter().for_each(|word| file.extend(word.to_le_bytes()));
        file.extend(if segment.kind == 1 { PAGE } else { 4 }.to_le_bytes());
    }
    file.extend(note);
    file.resize(TEXT_AT as usize, 0);
    file.extend(text);
    file.extend(data);
    symbols(&mut file, code, sections_at);
    file
}

/// Pieces at their addresses, in one run of bytes that is zero elsewhere.
fn place<'a>(pieces: impl Iterator<Item = (u64, &'a [u8])>, start: u64, end: u64) -> Vec<u8> {
    let mut bytes = vec![0; (end - start) as usize];
    for (address, piece) in pieces {
        let at = (address - start) as usize;
        if let Some(room) = bytes.get_mut(at..at + piece.len()) {
            room.copy_from_slice(piece);
        }
    }
    bytes
}

/// The pages that the guest finds at its start: greeting, data, code; mailbox, reply, scratch and boot words are zero.
fn data() -> Vec<u8> {
    let pattern: Vec<u8> = (0..PAGE).map(|n| n as u8).collect();
    // mov eax, 0x600dc0de; ret
    let function = [0xb8, 0xde, 0xc0, 0x0d, 0x60, 0xc3];
    let pieces = [
        (layout::GREETING, GREETING_TEXT.as_bytes()),
        (layout::DATA, pattern.as_slice()),
        (layout::CODE, function.as_slice()),
    ];
    place(pieces.into_iter(), crate::mailbox::MAILBOX, layout::DATA_END)
}

fn header(sections_at: u64) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    // ET_EXEC, EM_X86_64.
    file.extend([2, 0, 62, 0]);
    file.extend(1_u32.to_le_bytes());
    for word in [layout::ENTRY, u64::from(HEADER), sections_at] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for half in [HEADER, PROGRAM_HEADER, 3, SECTION_HEADER, 4, 3] {
        file.extend(half.to_le_bytes());
    }
    file
}

/// The PVH note: the physical address of the 32-bit entry.
fn note() -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4, 4, PHYS32_ENTRY] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend((layout::TEXT32 as u32).to_le_bytes());
    note
}

/// Appends the section headers (at `at`, the file's end), the symbols and their names.
fn symbols(file: &mut Vec<u8>, code: &Code, at: u64) {
    let mut names = b"\0.text\0.symtab\0.strtab\0".to_vec();
    let mut table = vec![0; SYMBOL as usize];
    let own = [("pvh_start", layout::TEXT32), ("_start", layout::ENTRY), ("gates", layout::STUBS)];
    for (name, address) in own.iter().chain(&code.symbols) {
        table.extend((names.len() as u32).to_le_bytes());
        // STT_NOTYPE, STB_GLOBAL; section 1.
        table.extend([0x10, 0, 1, 0]);
        table.extend(address.to_le_bytes());
        table.extend(0_u64.to_le_bytes());
        names.extend(name.bytes().chain([0]));
    }
    let table_at = at + 4 * u64::from(SECTION_HEADER);
    let names_at = table_at + table.len() as u64;
    // name, type, flags, address, offset, size, link, info, align, entry size
    let text_size = layout::TEXT_END - layout::TEXT32;
    let sections: [[u64; 10]; 4] = [
        [0; 10],
        [1, 1, 7, layout::TEXT32, TEXT_AT, text_size, 0, 0, PAGE, 0],
        [7, 2, 0, 0, table_at, table.len() as u64, 3, 1, 8, SYMBOL],
        [15, 3, 0, 0, names_at, names.len() as u64, 0, 0, 1, 0],
    ];
    for [name, kind, flags, address, offset, size, link, info, align, entry] in sections {
        for word in [name, kind] {
            file.extend((word as u32).to_le_bytes());
        }
        for word in [flags, address, offset, size] {
            file.extend(word.to_le_bytes());
        }
        for word in [link, info] {
            file.extend((word as u32).to_le_bytes());
        }
        for word in [align, entry] {
            file.extend(word.to_le_bytes());
        }
    }
    file.extend(table);
    file.extend(names);
}
