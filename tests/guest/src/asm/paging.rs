//! Page tables: the kernel's one-to-one map, and the address space of each process.

use iced_x86::code_asm::*;

use super::kit::{Emit, at, place, store, zero};
use super::labels::Labels;
use crate::layout::{self, process};
use crate::mailbox::GREETING_SIZE;

const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;
/// Cache disable, for the local APIC.
const UNCACHED: u64 = 0x10;
const LARGE: u64 = 0x80;
const NO_EXECUTE: u64 = 1 << 63;

/// What a page of a process shows.
enum Shows {
    /// A page of the process's own area.
    Own(u64),
    /// A page that all share.
    Shared(u64),
}

/// The pages of a process that are always there: gva, what it shows, rights.
const PAGES: &[(u64, Shows, u64)] = &[
    (layout::USER_TEXT, Shows::Shared(layout::USER_IMAGE), USER),
    (layout::USER_INBOX, Shows::Own(process::INBOX), USER | WRITE | NO_EXECUTE),
    (layout::USER_STACK, Shows::Own(process::STACK), USER | WRITE | NO_EXECUTE),
    (layout::USER_SELF, Shows::Own(process::CODE), USER | WRITE),
    (layout::USER_GREETING, Shows::Shared(layout::GREETING), USER | NO_EXECUTE),
    (layout::USER_REPLY, Shows::Shared(layout::REPLY), USER | WRITE | NO_EXECUTE),
    (layout::USER_CODE, Shows::Shared(layout::CODE), USER),
    (layout::USER_DATA, Shows::Shared(layout::DATA), USER | WRITE | NO_EXECUTE),
    (layout::USER_SUPERVISOR, Shows::Shared(layout::DATA), WRITE | NO_EXECUTE),
];

/// The byte offset in a process's page table of the entry for a gva.
fn entry(gva: u64) -> u64 {
    process::PT + ((gva - layout::USER_BASE) >> 12) * 8
}

/// `kernel_tables`: builds the kernel's map. Changes RAX, RCX, RDX, RDI.
pub fn kernel_tables(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    place(a, &mut l.kernel_tables)?;
    a.mov(edi, layout::KERNEL_PML4 as u32)?;
    zero(a, 3 * 0x1000)?;
    store(a, at(layout::KERNEL_PML4), layout::KERNEL_PDPT | PRESENT | WRITE)?;
    for gib in 0..layout::KERNEL_GIB {
        store(a, at(layout::KERNEL_PDPT + 8 * gib), (layout::KERNEL_PDS + 0x1000 * gib) | PRESENT | WRITE)?;
    }
    fill(a, layout::KERNEL_PDS, LARGE | PRESENT | WRITE, 2 << 20, 512 * layout::KERNEL_GIB)?;
    let apic = layout::KERNEL_PDS + (layout::apic::BASE >> 21) * 8;
    a.or(at(apic), UNCACHED as i32)?;
    store(a, at(layout::KERNEL_PDS + 8), layout::KERNEL_PT | PRESENT | WRITE)?;
    fill(a, layout::KERNEL_PT, 2 << 20 | PRESENT | WRITE, 0x1000, 512)?;
    store(a, at(layout::KERNEL_PT + ((layout::GUARD - (2 << 20)) >> 12) * 8), 0)?;
    a.ret()
}

/// Writes `count` entries: the first, and then each `step` more.
fn fill(a: &mut CodeAssembler, table: u64, first: u64, step: u32, count: u64) -> Emit {
    let mut top = a.create_label();
    a.mov(edi, table as u32)?;
    a.mov(rax, first)?;
    a.mov(ecx, count as u32)?;
    place(a, &mut top)?;
    a.mov(qword_ptr(rdi), rax)?;
    a.add(rdi, 8)?;
    a.add(rax, step as i32)?;
    a.dec(ecx)?;
    a.jne(top)
}

/// `process_tables`: builds the address space and the inbox of the process whose area R12 points at and whose number
/// R13 has. Changes RAX, RCX, RDI.
pub fn process_tables(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    place(a, &mut l.process_tables)?;
    a.mov(rdi, r12)?;
    zero(a, process::END)?;
    store(a, qword_ptr(r12 + process::PML4), layout::KERNEL_PDPT | PRESENT | WRITE)?;
    let tree = [(process::PML4 + 8, process::PDPT), (process::PDPT, process::PD), (process::PD, process::PT)];
    for (slot, next) in tree {
        a.lea(rax, qword_ptr(r12 + (next | PRESENT | WRITE | USER) as i32))?;
        a.mov(qword_ptr(r12 + slot as i32), rax)?;
    }
    for (gva, shows, rights) in PAGES {
        a.mov(rax, rights | PRESENT)?;
        match shows {
            Shows::Own(offset) => {
                a.lea(rcx, qword_ptr(r12 + *offset as i32))?;
                a.add(rax, rcx)?;
            }
            Shows::Shared(gpa) => a.add(rax, *gpa as i32)?,
        }
        a.mov(qword_ptr(r12 + entry(*gva) as i32), rax)?;
    }
    inbox(a)?;
    a.ret()
}

/// The inbox starts with the process's number and with the greeting as seen.
fn inbox(a: &mut CodeAssembler) -> Emit {
    let base = process::INBOX as i32;
    a.mov(qword_ptr(r12 + base + layout::inbox::NUMBER), r13)?;
    a.mov(esi, layout::GREETING as u32)?;
    a.lea(rdi, qword_ptr(r12 + base + layout::inbox::GREETING))?;
    a.mov(ecx, (GREETING_SIZE / 8) as u32)?;
    a.rep().movsq()
}

/// `map_lazy`: maps the page of the running process at the gva in RAX, which is one of its lazy pages.
/// RDI is the process's inbox. Changes RAX and RCX.
pub fn map_lazy(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    place(a, &mut l.map_lazy)?;
    a.shr(rax, 12)?;
    a.and(eax, (layout::LAZY_PAGES - 1) as i32)?;
    a.mov(ecx, eax)?;
    a.shl(ecx, 12)?;
    let frames = (process::LAZY as i64 - process::INBOX as i64) as i32;
    a.lea(rcx, qword_ptr(rdi + rcx + frames + (PRESENT | WRITE | USER) as i32))?;
    a.mov(qword_ptr(rdi + rax * 8 + lazy_entries()), rcx)?;
    a.ret()
}

/// `unmap_lazy`: unmaps the lazy pages of the process whose inbox RDI is. The TLB is the caller's. Changes RAX.
pub fn unmap_lazy(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    place(a, &mut l.unmap_lazy)?;
    a.xor(eax, eax)?;
    for page in 0..layout::LAZY_PAGES {
        a.mov(qword_ptr(rdi + lazy_entries() + 8 * page as i32), rax)?;
    }
    a.ret()
}

/// From a process's inbox to its page table's entries of the lazy pages: the table lies below the inbox.
fn lazy_entries() -> i32 {
    (entry(layout::USER_LAZY) as i64 - process::INBOX as i64) as i32
}
