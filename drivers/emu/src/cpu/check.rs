//! Which values the registers of a vCPU can hold: for the guest's own writes, where a refusal is #GP, and for
//! writes from outside, where it is told in words.

use vmtree_api::x86::Registers;

use super::bits::*;

/// Why a value is refused.
pub type Refused = &'static str;

/// The widest physical address, in bits: all that an entry of a page table can hold.
pub const PHYSICAL_BITS: u32 = 52;

/// CR0: what 64-bit code may write. Reserved low bits are dropped, ET is always set.
///
/// # Errors
/// Why the CPU would raise #GP.
pub fn cr0(value: u64) -> Result<u64, Refused> {
    if value >> 32 != 0 {
        return Err("bits 63:32 are reserved");
    }
    if value & CR0_PE == 0 || value & CR0_PG == 0 {
        return Err("PE and PG can't be cleared: this machine runs 64-bit code only");
    }
    if value & CR0_NW != 0 && value & CR0_CD == 0 {
        return Err("NW needs CD");
    }
    Ok(value & CR0_KNOWN | CR0_ET)
}

/// CR3.
///
/// # Errors
/// As [`cr0`].
pub fn cr3(value: u64) -> Result<u64, Refused> {
    if value >> PHYSICAL_BITS != 0 { Err("bits 63:52 are reserved") } else { Ok(value) }
}

/// CR4.
///
/// # Errors
/// As [`cr0`].
pub fn cr4(value: u64) -> Result<u64, Refused> {
    if value & !CR4_KNOWN != 0 {
        return Err("it has only TSD DE PSE PAE PGE OSFXSR OSXMMEXCPT FSGSBASE OSXSAVE SMEP SMAP here");
    }
    if value & CR4_PAE == 0 {
        return Err("PAE can't be cleared in 64-bit code");
    }
    Ok(value)
}

/// CR8.
///
/// # Errors
/// As [`cr0`].
pub fn cr8(value: u64) -> Result<u64, Refused> {
    if value > 15 { Err("it is 0 to 15") } else { Ok(value) }
}

/// XCR0.
///
/// # Errors
/// As [`cr0`].
pub fn xcr0(value: u64) -> Result<u64, Refused> {
    if matches!(value, 1 | 3) { Ok(value) } else { Err("it is 1 (x87) or 3 (x87 and SSE)") }
}

/// EFER, given its value before. LMA is read-only and stays.
///
/// # Errors
/// As [`cr0`].
pub fn efer(value: u64, before: u64) -> Result<u64, Refused> {
    if value & !EFER_KNOWN != 0 {
        return Err("it has only SCE LME LMA NXE here");
    }
    if (value ^ before) & EFER_LME != 0 {
        return Err("LME can't change while paging is on");
    }
    Ok(value & !EFER_LMA | before & EFER_LMA)
}

/// DR6: bits that never change are put in place.
///
/// # Errors
/// As [`cr0`].
pub fn dr6(value: u64) -> Result<u64, Refused> {
    if value >> 32 != 0 { Err("bits 63:32 are reserved") } else { Ok(value & 0xe00f | DR6_INIT) }
}

/// DR7: bits that never change are put in place.
///
/// # Errors
/// As [`cr0`].
pub fn dr7(value: u64) -> Result<u64, Refused> {
    if value >> 32 != 0 { Err("bits 63:32 are reserved") } else { Ok(value & 0xffff_2bff | DR7_INIT) }
}

/// An address in a register.
///
/// # Errors
/// As [`cr0`].
pub fn address(value: u64) -> Result<u64, Refused> {
    if canonical(value) { Ok(value) } else { Err("the address is not canonical: bits 63:47 must be equal") }
}

/// A register whose upper half is reserved.
///
/// # Errors
/// As [`cr0`].
pub fn half(value: u64) -> Result<u64, Refused> {
    if value >> 32 != 0 { Err("bits 63:32 are reserved") } else { Ok(value) }
}

/// IA32_PAT: a memory type in each byte (volume 3A, 12.12.2).
///
/// # Errors
/// As [`cr0`].
pub fn pat(value: u64) -> Result<u64, Refused> {
    let good = value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7));
    if good { Ok(value) } else { Err("each byte is a memory type: 0, 1, 4, 5, 6 or 7") }
}

/// IA32_APIC_BASE, given its value before: only EN (bit 11) can change.
///
/// # Errors
/// As [`cr0`].
pub fn apic_base(value: u64, before: u64) -> Result<u64, Refused> {
    if (value ^ before) & !(1 << 11) != 0 {
        return Err("only EN (bit 11) can change: the APIC does not move and has no x2APIC mode");
    }
    Ok(value)
}

/// RFLAGS as set from outside: bit 1 is always set.
///
/// # Errors
/// Which bits it can't have.
pub fn rflags(value: u64) -> Result<u64, Refused> {
    if value & !RFLAGS_KNOWN != 0 {
        return Err("bits 3, 5, 15 and 63:22 are reserved");
    }
    if value & RFLAGS_VM != 0 {
        return Err("VM can't be set in 64-bit mode");
    }
    Ok(value | RFLAGS_FIXED)
}

/// Whether a whole set holds together, as a VM entry would check it (volume 3C, 27.3.1.2).
///
/// # Errors
/// The register and why.
pub fn segments(regs: &Registers) -> Result<(), (&'static str, Refused)> {
    let named = [
        ("es", regs.es),
        ("cs", regs.cs),
        ("ss", regs.ss),
        ("ds", regs.ds),
        ("fs", regs.fs),
        ("gs", regs.gs),
        ("ldtr", regs.ldtr),
        ("tr", regs.tr),
    ];
    for (name, segment) in named {
        let present = segment.attr & 0x80 != 0;
        if segment.attr & 0x0f00 != 0 {
            return Err((name, "bits 8 to 11 of attr are reserved"));
        }
        if !canonical(segment.base) {
            return Err((name, "the base is not canonical"));
        }
        if matches!(name, "es" | "cs" | "ss" | "ds") && segment.base >> 32 != 0 {
            return Err((name, "the base has 32 bits"));
        }
        let coarse = segment.attr & 0x8000 != 0;
        if present && (coarse && segment.limit & 0xfff != 0xfff || !coarse && segment.limit >> 20 != 0) {
            return Err((name, "limit and G (bit 15 of attr) don't fit each other"));
        }
        let system = matches!(name, "ldtr" | "tr");
        if present && system == (segment.attr & 0x10 != 0) {
            return Err((name, "S (bit 4 of attr) is for code and data, and clear for ldtr and tr"));
        }
    }
    let (cs, ss) = (regs.cs.attr, regs.ss.attr);
    if cs & 0x6098 != 0x2098 {
        return Err(("cs", "it must be a present 64-bit code segment: L set, D clear"));
    }
    // A conforming segment may have a lower DPL than the code that runs in it.
    let (dpl, cpl) = (cs >> 5 & 3, ss >> 5 & 3);
    if if cs & 4 != 0 { dpl > cpl } else { dpl != cpl } {
        return Err(("cs", "its DPL does not fit that of ss, which is the CPL; set both"));
    }
    if ss & 0x80 != 0 && ss & 0xa != 2 {
        return Err(("ss", "it must be writable data"));
    }
    if regs.tr.attr & 0x80 != 0 && regs.tr.attr & 0xf != 11 {
        return Err(("tr", "it must be a busy 64-bit TSS (type 11)"));
    }
    Ok(())
}
