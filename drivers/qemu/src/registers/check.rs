//! Values that the processor would refuse. QEMU's gdbstub takes any, and KVM then stops the VM for good.

use vmtree_api::x86::bits::*;
use vmtree_api::x86::{Reg, Registers};

/// Why a value is refused.
type Refused = &'static str;

/// VME PVI TSD DE PSE PAE MCE PGE PCE OSFXSR OSXMMEXCPT: what every x86-64 processor has.
const CR4_COMMON: u64 = 0x7ff;

/// Checks the registers that change from `before` to `after`. Returns the first that the processor would refuse.
///
/// # Errors
/// The register and why.
pub fn changes(before: &Registers, after: &Registers) -> Result<(), (Reg, Refused)> {
    let long = before.efer & EFER_LMA != 0;
    let same = |reg: Reg| before.get(reg) == after.get(reg);
    let checks = [
        (Reg::Rip, address(after.rip, after.cr4)),
        (Reg::Rflags, rflags(after.rflags, long)),
        (Reg::Cr0, cr0(before.cr0, after.cr0)),
        (Reg::Cr3, cr3(after.cr3)),
        (Reg::Cr4, cr4(before.cr4, after.cr4, long, after.cr3)),
        (Reg::Cr8, need(after.cr8 <= 15, "it is 0 to 15")),
        (Reg::Efer, efer(before.efer, after.efer)),
        (Reg::KernelGsBase, address(after.kernel_gs_base, after.cr4)),
    ];
    let refused =
        checks.into_iter().find_map(|(reg, check)| check.err().filter(|_| !same(reg)).map(|why| (reg, why)));
    refused.map_or(Ok(()), Err)
}

fn efer(old: u64, new: u64) -> Result<(), Refused> {
    need((old ^ new) & !(EFER_SCE | EFER_NXE) == 0, "only SCE and NXE can be changed from outside")
}

fn need(holds: bool, why: Refused) -> Result<(), Refused> {
    if holds { Ok(()) } else { Err(why) }
}

fn address(value: u64, cr4: u64) -> Result<(), Refused> {
    let unused = if cr4 & CR4_LA57 != 0 { 7 } else { 16 };
    let canonical = ((value << unused) as i64 >> unused) as u64 == value;
    need(canonical, "the address is not canonical: its upper bits must be equal")
}

fn rflags(value: u64, long: bool) -> Result<(), Refused> {
    need(value & !RFLAGS_KNOWN == 0, "bits 3, 5, 15 and 63:22 are reserved")?;
    need(value & RFLAGS_FIXED != 0, "bit 1 is always set")?;
    need(!long || value & RFLAGS_VM == 0, "VM can't be set in 64-bit mode")
}

fn cr0(old: u64, new: u64) -> Result<(), Refused> {
    need(new & !CR0_KNOWN == 0, "it has only PE MP EM TS ET NE WP AM NW CD PG")?;
    need((old ^ new) & (CR0_PE | CR0_PG) == 0, "PE and PG can't be changed from outside")?;
    need(new & CR0_NW == 0 || new & CR0_CD != 0, "NW needs CD")
}

fn cr3(value: u64) -> Result<(), Refused> {
    need(value >> 52 == 0, "bits 63:52 are reserved")
}

fn cr4(old: u64, new: u64, long: bool, cr3: u64) -> Result<(), Refused> {
    // Which of the other bits the guest's processor has, QEMU does not tell.
    need(new & !old & !CR4_COMMON == 0, "only VME to OSXMMEXCPT (bits 0 to 10) can be set from outside")?;
    need(!long || (old ^ new) & (CR4_PAE | CR4_LA57) == 0, "PAE and LA57 can't be changed in 64-bit mode")?;
    need((old ^ new) & CR4_PCIDE == 0 || cr3 & 0xfff == 0, "PCIDE can't be changed while CR3 has a PCID")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(reg: Reg, value: u64) -> bool {
        let before = Registers {
            cr0: 0x8001_0033,
            cr3: 0x21_0000,
            cr4: 0x620,
            efer: 0xd01,
            rflags: 2,
            ..Registers::default()
        };
        let mut after = before.clone();
        after.set(reg, vmtree_api::RegValue::Word(value));
        changes(&before, &after).is_ok()
    }

    #[test]
    fn what_the_processor_takes_passes_and_nothing_else() {
        for (reg, good, bad) in [
            (Reg::Rip, 0xffff_8000_0000_0000, 0x8000_0000_0000),
            (Reg::Rflags, 0x246, 0x244),
            (Reg::Rflags, 0x202, 0x2_0002),
            (Reg::Cr0, 0x8005_0033, 0x11),
            (Reg::Cr0, 0xe001_0033, 0xa001_0033),
            (Reg::Cr3, 0x1000, 1 << 52),
            (Reg::Cr4, 0x6a0, 0x600),
            (Reg::Cr4, 0x20, 1 << 20 | 0x620),
            (Reg::Cr8, 15, 16),
            (Reg::Efer, 0x500, 0xc00),
            (Reg::KernelGsBase, 0x1000, 1 << 63),
            (Reg::Cr2, u64::MAX, 0),
        ] {
            assert!(check(reg, good), "{reg:?} {good:#x}");
            assert!(reg == Reg::Cr2 || !check(reg, bad), "{reg:?} {bad:#x}");
        }
    }
}
