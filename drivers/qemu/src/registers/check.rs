//! Values that the processor would refuse. QEMU's gdbstub takes any, and KVM then stops the VM for good.

use vmtree_api::x86::bits::EFER_LMA;
use vmtree_api::x86::check::{self, Refused, need};
use vmtree_api::x86::{Reg, Registers};

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
        (Reg::Rip, check::address(after.rip, after.cr4)),
        (Reg::Rflags, check::rflags(after.rflags, long)),
        (Reg::Cr0, check::cr0(before.cr0, after.cr0)),
        (Reg::Cr3, check::cr3(after.cr3)),
        (Reg::Cr4, cr4(before.cr4, after.cr4, long, after.cr3)),
        (Reg::Cr8, check::cr8(after.cr8)),
        (Reg::Efer, check::efer(before.efer, after.efer)),
        (Reg::KernelGsBase, check::address(after.kernel_gs_base, after.cr4)),
    ];
    let refused =
        checks.into_iter().find_map(|(reg, check)| check.err().filter(|_| !same(reg)).map(|why| (reg, why)));
    refused.map_or(Ok(()), Err)
}

fn cr4(old: u64, new: u64, long: bool, cr3: u64) -> Result<(), Refused> {
    // Which of the other bits the guest's processor has, QEMU does not tell.
    need(new & !old & !CR4_COMMON == 0, "only VME to OSXMMEXCPT (bits 0 to 10) can be set from outside")?;
    check::cr4(old, new, long, cr3)
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
