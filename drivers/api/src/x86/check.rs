//! What every x86-64 processor refuses in a register, for drivers whose hypervisor takes any value and then loses the VM.

use super::bits::*;

/// Why a value is refused.
pub type Refused = &'static str;

/// Refuses what does not hold.
///
/// # Errors
/// `why`.
pub fn need(holds: bool, why: Refused) -> Result<(), Refused> {
    if holds { Ok(()) } else { Err(why) }
}

/// A linear address, as CR4 has its width.
///
/// # Errors
/// It is not canonical (Intel SDM volume 1, 3.3.7.1).
pub fn address(value: u64, cr4: u64) -> Result<(), Refused> {
    let unused = if cr4 & CR4_LA57 != 0 { 7 } else { 16 };
    let canonical = ((value << unused) as i64 >> unused) as u64 == value;
    need(canonical, "the address is not canonical: its upper bits must be equal")
}

/// RFLAGS, of a vCPU that may be in long mode.
///
/// # Errors
/// Reserved bits, and VM in long mode.
pub fn rflags(value: u64, long: bool) -> Result<(), Refused> {
    need(value & !RFLAGS_KNOWN == 0, "bits 3, 5, 15 and 63:22 are reserved")?;
    need(value & RFLAGS_FIXED != 0, "bit 1 is always set")?;
    need(!long || value & RFLAGS_VM == 0, "VM can't be set in 64-bit mode")
}

/// CR0. Modes stay as they are: more goes with them than the register.
///
/// # Errors
/// Unknown bits, another mode, and NW without CD.
pub fn cr0(old: u64, new: u64) -> Result<(), Refused> {
    need(new & !CR0_KNOWN == 0, "it has only PE MP EM TS ET NE WP AM NW CD PG")?;
    need((old ^ new) & (CR0_PE | CR0_PG) == 0, "PE and PG can't be changed from outside")?;
    need(new & CR0_NW == 0 || new & CR0_CD != 0, "NW needs CD")
}

/// CR3.
///
/// # Errors
/// Reserved bits.
pub fn cr3(value: u64) -> Result<(), Refused> {
    need(value >> 52 == 0, "bits 63:52 are reserved")
}

/// What of CR4 can't change at all, whatever bits the processor has.
///
/// # Errors
/// The way of paging in long mode, and PCIDE beside a PCID.
pub fn cr4(old: u64, new: u64, long: bool, cr3: u64) -> Result<(), Refused> {
    need(!long || (old ^ new) & (CR4_PAE | CR4_LA57) == 0, "PAE and LA57 can't be changed in 64-bit mode")?;
    need((old ^ new) & CR4_PCIDE == 0 || cr3 & 0xfff == 0, "PCIDE can't be changed while CR3 has a PCID")
}

/// CR8.
///
/// # Errors
/// More than four bits.
pub fn cr8(value: u64) -> Result<(), Refused> {
    need(value <= 15, "it is 0 to 15")
}

/// EFER.
///
/// # Errors
/// Another change than of SCE and NXE.
pub fn efer(old: u64, new: u64) -> Result<(), Refused> {
    need((old ^ new) & !(EFER_SCE | EFER_NXE) == 0, "only SCE and NXE can be changed from outside")
}
