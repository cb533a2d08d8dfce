//! The PVH way in: 32-bit entry, long mode, and the start of the other vCPUs from real mode.

use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, Code, IcedError, Instruction};

use super::kit::{Emit, at, place, store, write_apic};
use super::labels::Labels;
use super::msr;
use crate::layout::{self, apic, selector};
use crate::mailbox::{MAX_VCPUS, boot};

/// Where the GDT of this way lies in the 32-bit page, and its pseudo-descriptor after it.
const GDT: u64 = layout::TEXT32 + 0x800;
const GDT_POINTER: u64 = GDT + 0x20;
/// PAE, OSFXSR, OSXMMEXCPT.
const CR4: u32 = 0x620;
/// PG, AM, WP, NE, ET, MP, PE.
const CR0: u32 = 0x8005_0033;
/// SCE, LME, NXE.
const EFER: u32 = 0x901;
/// Counts of the local APIC's timer (divided by 16, at 1 GHz) in 1 ms.
const MILLISECOND: u32 = apic::TICK / 10;

/// The page of 32-bit code and tables, and the real-mode code of the other vCPUs.
pub struct Start {
    /// Code, GDT and its pseudo-descriptor, to be loaded at [`layout::TEXT32`].
    pub page: Vec<u8>,
    /// How much of the page is code.
    pub code: usize,
    /// The code that starts at [`layout::REAL_MODE`].
    pub real_mode: Vec<u8>,
}

/// Assembles both.
pub fn assemble() -> Result<Start, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    let mut other = a.create_label();
    protected(&mut a, &mut other)?;
    let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let code = a.assemble_options(layout::TEXT32, options)?;
    let real_mode = real_mode(code.label_ip(&other)? as u32)?;
    let mut page = code.inner.code_buffer;
    let code = page.len();
    page.resize((GDT - layout::TEXT32) as usize, 0);
    for descriptor in [0, super::KERNEL_CODE, super::KERNEL_DATA, super::KERNEL_CODE32] {
        page.extend(u64::to_le_bytes(descriptor));
    }
    page.extend(table_pointer());
    Ok(Start { page, code, real_mode })
}

/// The 32-bit code: the first vCPU enters at its start, the others at `other`.
fn protected(a: &mut CodeAssembler, other: &mut CodeLabel) -> Emit {
    let mut both = a.create_label();
    a.cli()?;
    a.cld()?;
    boot_tables(a)?;
    a.mov(ebp, layout::PVH_FIRST as u32)?;
    a.jmp(both)?;
    place(a, other)?;
    a.mov(eax, selector::KERNEL_DATA)?;
    for segment in [ds, es, ss] {
        a.mov(segment, eax)?;
    }
    a.mov(ebp, layout::PVH_OTHER as u32)?;
    place(a, &mut both)?;
    a.mov(eax, CR4)?;
    a.mov(cr4, eax)?;
    a.mov(eax, layout::BOOT_TABLES as u32)?;
    a.mov(cr3, eax)?;
    a.mov(ecx, msr::EFER)?;
    a.mov(eax, EFER)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    a.mov(eax, CR0)?;
    a.mov(cr0, eax)?;
    a.lgdt(ptr(GDT_POINTER as i32))?;
    a.jmp_far(selector::KERNEL_CODE as u16, layout::LANDING as u32)
}

/// One to one for 4 GiB, in 2 MiB pages, writable.
fn boot_tables(a: &mut CodeAssembler) -> Emit {
    let tables = layout::BOOT_TABLES as u32;
    let mut top = a.create_label();
    a.mov(edi, tables)?;
    a.xor(eax, eax)?;
    a.mov(ecx, 6 * 0x400_u32)?;
    a.rep().stosd()?;
    a.mov(dword_ptr(tables), tables + 0x1003)?;
    for n in 0..4 {
        a.mov(dword_ptr(tables + 0x1000 + 8 * n), tables + 0x2003 + 0x1000 * n)?;
    }
    a.mov(edi, tables + 0x2000)?;
    a.mov(eax, 0x83)?;
    place(a, &mut top)?;
    a.mov(dword_ptr(edi), eax)?;
    a.add(edi, 8)?;
    a.add(eax, 2 << 20)?;
    a.cmp(edi, (tables + 0x6000) as i32)?;
    a.jb(top)
}

/// The 16-bit code: to protected mode, and on at `other`. Its table pointer lies behind it.
fn real_mode(other: u32) -> Result<Vec<u8>, IcedError> {
    const POINTER: u64 = 0x40;
    let mut a = CodeAssembler::new(16)?;
    a.cli()?;
    a.cld()?;
    a.xor(eax, eax)?;
    a.mov(ds, ax)?;
    a.lgdt(ptr((layout::REAL_MODE + POINTER) as i32))?;
    a.mov(eax, cr0)?;
    a.or(al, 1)?;
    a.mov(cr0, eax)?;
    a.add_instruction(Instruction::with_far_branch(Code::Jmp_ptr1632, selector::CODE32 as u16, other)?)?;
    let mut code = a.assemble(layout::REAL_MODE)?;
    code.resize(POINTER as usize, 0);
    code.extend(table_pointer());
    Ok(code)
}

/// Limit and base of the GDT of this way.
fn table_pointer() -> [u8; 6] {
    let [a, b, c, d] = (GDT as u32).to_le_bytes();
    [0x1f, 0, a, b, c, d]
}

/// The 64-bit part: the landing, the first vCPU's start of the others, and how they go on.
pub fn emit(a: &mut CodeAssembler, l: &mut Labels, real_mode: &[u8]) -> Emit {
    let mut blob = a.create_label();
    landing(a, l)?;
    place(a, &mut l.pvh_first)?;
    a.mov(esp, layout::DATA_END as u32)?;
    store(a, at(layout::boot::HOW), boot::PVH)?;
    a.lea(rsi, qword_ptr(blob))?;
    a.mov(edi, layout::REAL_MODE as u32)?;
    a.mov(ecx, real_mode.len() as u32)?;
    a.rep().movsb()?;
    quiet_devices(a)?;
    expected(a)?;
    start_others(a)?;
    a.mov(rsi, at(layout::boot::ARRIVED))?;
    a.inc(rsi)?;
    a.mov(at(layout::boot::VCPUS), rsi)?;
    a.xor(edi, edi)?;
    a.jmp(l.entry)?;
    others(a, l)?;
    a.set_label(&mut blob)?;
    a.db(real_mode)
}

fn landing(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    place(a, &mut l.pvh_landing)?;
    a.mov(eax, selector::KERNEL_DATA)?;
    for segment in [ds, es, ss] {
        a.mov(segment, eax)?;
    }
    a.mov(ebp, ebp)?;
    a.jmp(rbp)
}

/// The legacy interrupt controllers masked, so that nothing but the guest's own vectors comes; the local APIC on, its
/// timer ready to measure.
fn quiet_devices(a: &mut CodeAssembler) -> Emit {
    a.mov(al, -1)?;
    a.out(0x21, al)?;
    a.out(0xa1, al)?;
    write_apic(a, apic::SPURIOUS, 0x1ff)?;
    write_apic(a, apic::LINT0, 0x1_0000)?;
    write_apic(a, apic::DIVIDE, 3)?;
    write_apic(a, apic::TIMER, 0x1_0000)
}

/// R12 becomes the number of vCPUs that may come, R13 the milliseconds to wait for them. QEMU tells the number through
/// its fw_cfg ports (docs/specs/fw_cfg: signature at key 0, FW_CFG_NB_CPUS is key 5); others are given 100 ms.
fn expected(a: &mut CodeAssembler) -> Emit {
    let mut unknown = a.create_label();
    a.mov(r12d, MAX_VCPUS as u32)?;
    a.mov(r13d, 100)?;
    for (key, bytes) in [(0, 4), (5, 2)] {
        a.mov(dx, 0x510)?;
        a.mov(eax, key)?;
        a.out(dx, ax)?;
        a.inc(edx)?;
        a.xor(eax, eax)?;
        for _ in 0..bytes {
            a.shl(eax, 8)?;
            a.in_(al, dx)?;
        }
        if key == 0 {
            a.cmp(eax, u32::from_be_bytes(*b"QEMU") as i32)?;
            a.jne(unknown)?;
        }
    }
    a.xchg(al, ah)?;
    a.mov(r12d, eax)?;
    a.mov(r13d, 5000)?;
    place(a, &mut unknown)
}

/// INIT, start-up, start-up to all others (Intel SDM volume 3A, 9.4.4.1), then waits for them.
fn start_others(a: &mut CodeAssembler) -> Emit {
    let (mut wait, mut done) = (a.create_label(), a.create_label());
    let page = (layout::REAL_MODE >> 12) as u32;
    for (command, milliseconds) in [(0xc_4500, 10), (0xc_4600 | page, 1), (0xc_4600 | page, 1)] {
        write_apic(a, apic::ICR, command)?;
        delay(a, milliseconds)?;
    }
    place(a, &mut wait)?;
    a.mov(rax, at(layout::boot::ARRIVED))?;
    a.inc(rax)?;
    a.cmp(rax, r12)?;
    a.jae(done)?;
    delay(a, 1)?;
    a.dec(r13)?;
    a.jne(wait)?;
    place(a, &mut done)
}

/// Waits by the local APIC's timer, without an interrupt. Changes RAX and RCX.
fn delay(a: &mut CodeAssembler, milliseconds: u32) -> Emit {
    let mut top = a.create_label();
    write_apic(a, apic::INITIAL, milliseconds * MILLISECOND)?;
    a.mov(ecx, apic::CURRENT as u32)?;
    place(a, &mut top)?;
    a.cmp(dword_ptr(rcx), 0)?;
    a.jne(top)
}

/// The others count themselves in, wait for the number of all, and number themselves by their local APICs' ids: those need
/// not follow on each other (Xen's are even).
fn others(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    let (mut wait, mut lower, mut numbered) = (a.create_label(), a.create_label(), a.create_label());
    place(a, &mut l.pvh_other)?;
    a.mov(ecx, apic::ID as u32)?;
    a.mov(ecx, dword_ptr(rcx))?;
    a.shr(ecx, 24)?;
    a.mov(byte_ptr(rcx + layout::boot::PRESENT as i32), 1)?;
    a.lock().inc(at(layout::boot::ARRIVED))?;
    place(a, &mut wait)?;
    // Bochs takes no interrupt in a guest that has them off, so its only processor would do nothing else: Xen takes it away by
    // PAUSE-loop exiting.
    a.pause()?;
    a.cmp(at(layout::boot::VCPUS), 0)?;
    a.je(wait)?;
    a.mov(edi, 1)?;
    a.mov(esi, layout::boot::PRESENT as u32)?;
    a.xor(eax, eax)?;
    place(a, &mut lower)?;
    a.sub(ecx, 1)?;
    a.jb(numbered)?;
    a.lodsb()?;
    a.add(edi, eax)?;
    a.jmp(lower)?;
    place(a, &mut numbered)?;
    a.mov(rsi, at(layout::boot::VCPUS))?;
    a.jmp(l.entry)
}
