//! The state in which a vCPU starts an image (docs/emu.md): 64-bit mode, flat, one to one.

use std::ops::Range;

use vmtree_api::x86::{Registers, Segment, Table};

use crate::cpu::Cpu;
use crate::cpu::bits::*;
use crate::cpu::msr::MISC_ENABLE_INIT;
use crate::cpu::vcpu::{Activity, Vcpu};
use crate::ram::Ram;

/// What the page tables and the GDT take.
pub const TABLES: Range<u64> = 0x1000..0x8000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
/// Four page directories.
const DIRECTORIES: u64 = 0x3000;
const GDT: u64 = 0x7000;
const STACKS_END: u64 = 0x8_0000;
const STACK_BYTES: u64 = 0x1000;

/// Present and writable.
const TABLE: u64 = 3;
/// Present, writable and a page of its own.
const LEAF: u64 = 0x83;
const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
/// The power-up value (Intel SDM volume 3A, table 12-12).
const PAT_INIT: u64 = 0x0007_0406_0007_0406;
const MXCSR_INIT: u32 = 0x1f80;

/// Writes the tables: 4 GiB in pages of 2 MiB, then up to 512 GiB in pages of 1 GiB; and the GDT.
pub fn tables(ram: &Ram) {
    let put = |at: u64, value: u64| {
        ram.store(at, &value.to_le_bytes());
    };
    put(PML4, PDPT | TABLE);
    for gib in 0..512 {
        let entry = if gib < 4 { (DIRECTORIES + gib * 0x1000) | TABLE } else { gib << 30 | LEAF };
        put(PDPT + gib * 8, entry);
    }
    for page in 0..4 * 512 {
        put(DIRECTORIES + page * 8, page << 21 | LEAF);
    }
    put(GDT + u64::from(CODE), 0x00af_9b00_0000_ffff);
    put(GDT + u64::from(DATA), 0x00cf_9300_0000_ffff);
}

/// A vCPU as it starts at `entry`, one of `vcpus`.
pub fn vcpu(id: u32, vcpus: u32, entry: u64) -> Vcpu {
    let data = Segment { selector: DATA, base: 0, limit: u32::MAX, attr: 0xc093 };
    let mut regs = Registers {
        rip: entry,
        rflags: RFLAGS_FIXED,
        cr0: CR0_PG | CR0_AM | CR0_WP | CR0_NE | CR0_ET | CR0_MP | CR0_PE,
        cr3: PML4,
        cr4: CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT,
        efer: EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE,
        xcr0: 1,
        cs: Segment { selector: CODE, base: 0, limit: u32::MAX, attr: 0xa09b },
        ss: data,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        gdtr: Table { base: GDT, limit: 0x17 },
        pat: PAT_INIT,
        ..Registers::default()
    };
    regs.dr[6] = DR6_INIT;
    regs.dr[7] = DR7_INIT;
    regs.gpr[4] = STACKS_END - u64::from(id) * STACK_BYTES;
    regs.gpr[6] = u64::from(vcpus);
    regs.gpr[7] = u64::from(id);
    Vcpu {
        id: id as usize,
        cpu: Cpu { regs, mxcsr: MXCSR_INIT, ..Cpu::default() },
        misc_enable: MISC_ENABLE_INIT,
        activity: Activity::Running,
        ..Vcpu::default()
    }
}
