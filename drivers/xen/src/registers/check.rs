//! Values that the processor would refuse: a VM entry with them fails, and Xen then crashes the domain.

use vmtree_api::x86::bits::*;
use vmtree_api::x86::check::{self, Refused, need};
use vmtree_api::x86::{Reg, Registers, Segment};

/// Bits of a segment's rights (Intel SDM volume 3C, table 25-2).
const CODE: u16 = 1 << 3;
const ACCESSED: u16 = 1;
const WRITABLE: u16 = 1 << 1;
const NOT_SYSTEM: u16 = 1 << 4;
const PRESENT: u16 = 1 << 7;
const LONG: u16 = 1 << 13;
const BIG: u16 = 1 << 14;
const GRANULAR: u16 = 1 << 15;

/// Checks what changes from `before` to `after`; what Xen checks itself is left to it.
///
/// # Errors
/// The first register that would be refused, and why.
pub fn changes(before: &Registers, after: &Registers) -> Result<(), (Reg, Refused)> {
    let long = before.efer & EFER_LMA != 0;
    let checks = [
        (Reg::Rip, address(after.rip, after)),
        (Reg::Rflags, check::rflags(after.rflags, long)),
        (Reg::Cr0, cr0(before.cr0, after.cr0)),
        (Reg::Cr3, check::cr3(after.cr3)),
        (Reg::Cr4, check::cr4(before.cr4, after.cr4, long, after.cr3)),
        (Reg::Cr8, check::cr8(after.cr8)),
        (Reg::Xcr0, need(after.xcr0 & 1 != 0, "bit 0 (x87) is always set")),
        (Reg::Dr6, need(after.dr[6] >> 32 == 0, "bits 63:32 are reserved")),
        (Reg::Dr7, need(after.dr[7] >> 32 == 0, "bits 63:32 are reserved")),
        (Reg::Efer, check::efer(before.efer, after.efer)),
        (Reg::Fmask, need(after.fmask >> 32 == 0, "bits 63:32 are reserved")),
        (Reg::TscAux, need(after.tsc_aux >> 32 == 0, "bits 63:32 are reserved")),
        (Reg::SysenterCs, need(after.sysenter_cs >> 32 == 0, "bits 63:32 are reserved")),
        (Reg::Lstar, address(after.lstar, after)),
        (Reg::Cstar, address(after.cstar, after)),
        (Reg::KernelGsBase, address(after.kernel_gs_base, after)),
        (Reg::SysenterEsp, address(after.sysenter_esp, after)),
        (Reg::SysenterEip, address(after.sysenter_eip, after)),
        (Reg::Gdtr, address(after.gdtr.base, after)),
        (Reg::Idtr, address(after.idtr.base, after)),
        (Reg::Pat, pat(after.pat)),
        (Reg::Cs, code(&after.cs, after)),
        (
            Reg::Ss,
            data(&after.ss).and_then(|()| {
                need(
                    after.ss.attr & PRESENT == 0 || after.ss.attr & WRITABLE != 0,
                    "a stack must be writable",
                )
            }),
        ),
        (Reg::Ds, data(&after.ds)),
        (Reg::Es, data(&after.es)),
        (Reg::Fs, data(&after.fs).and_then(|()| address(after.fs.base, after))),
        (Reg::Gs, data(&after.gs).and_then(|()| address(after.gs.base, after))),
        (
            Reg::Tr,
            system(&after.tr, 11, "it must be a busy TSS that is present")
                .and_then(|()| need(after.tr.attr & PRESENT != 0, "it must be present")),
        ),
        (Reg::Ldtr, system(&after.ldtr, 2, "it must be an LDT, or not present")),
    ];
    let changed = |reg: Reg| before.get(reg) != after.get(reg);
    checks
        .into_iter()
        .find_map(|(reg, check)| check.err().filter(|_| changed(reg)).map(|why| (reg, why)))
        .map_or(Ok(()), Err)
}

fn address(value: u64, regs: &Registers) -> Result<(), Refused> {
    check::address(value, regs.cr4)
}

fn cr0(old: u64, new: u64) -> Result<(), Refused> {
    check::cr0(old, new)?;
    need(new & CR0_ET != 0, "ET (bit 4) is always set")
}

fn pat(value: u64) -> Result<(), Refused> {
    let good = value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7));
    need(good, "each byte is a memory type: 0, 1, 4, 5, 6 or 7")
}

/// What VM entry asks of any segment that is present (volume 3C, 27.3.1.2).
fn usable(segment: &Segment) -> Result<(), Refused> {
    need(segment.attr & 0xf00 == 0, "bits 11:8 of the attributes are reserved")?;
    let (limit, granular) = (segment.limit, segment.attr & GRANULAR != 0);
    need(granular || limit >> 20 == 0, "a limit over 1 MiB needs G")?;
    need(!granular || limit & 0xfff == 0xfff, "with G the limit ends with 0xfff")
}

fn code(segment: &Segment, regs: &Registers) -> Result<(), Refused> {
    usable(segment)?;
    let wanted = PRESENT | NOT_SYSTEM | CODE | ACCESSED;
    need(segment.attr & wanted == wanted, "it must be present, a code segment, and accessed")?;
    let long = segment.attr & LONG != 0;
    need(!long || segment.attr & BIG == 0, "L and D exclude each other")?;
    need(
        regs.efer & EFER_LMA == 0 || regs.cs.attr & LONG == segment.attr & LONG,
        "L can't be changed in 64-bit mode",
    )
}

fn data(segment: &Segment) -> Result<(), Refused> {
    if segment.attr & PRESENT == 0 {
        return Ok(());
    }
    usable(segment)?;
    need(
        segment.attr & (NOT_SYSTEM | ACCESSED) == NOT_SYSTEM | ACCESSED,
        "it must be accessed and no system segment",
    )?;
    need(segment.attr & CODE == 0 || segment.attr & WRITABLE != 0, "a code segment here must be readable")
}

fn system(segment: &Segment, kind: u16, why: Refused) -> Result<(), Refused> {
    if segment.attr & PRESENT == 0 {
        return Ok(());
    }
    usable(segment)?;
    need(segment.attr & (NOT_SYSTEM | 0xf) == kind && segment.selector & 4 == 0, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmtree_api::RegValue;

    fn flat(attr: u16) -> Segment {
        Segment { selector: 8, base: 0, limit: u32::MAX, attr }
    }

    fn before() -> Registers {
        let tr = Segment { selector: 0x30, base: 0x5000, limit: 0x67, attr: 0x8b };
        let (cs, ss) = (flat(0xa09b), flat(0xc093));
        let base = Registers {
            cr0: 0x8001_0033,
            cr3: 0x21_0000,
            cr4: 0x620,
            efer: 0xd01,
            rflags: 2,
            ..Registers::default()
        };
        Registers { cs, ss, ds: ss, tr, pat: 0x0007_0406_0007_0406, xcr0: 1, ..base }
    }

    fn check(reg: Reg, value: RegValue) -> bool {
        let before = before();
        let mut after = before.clone();
        after.set(reg, value);
        changes(&before, &after).is_ok()
    }

    #[test]
    fn what_the_processor_takes_passes_and_nothing_else() {
        for (reg, good, bad) in [
            (Reg::Rip, 0xffff_8000_0000_0000, 0x8000_0000_0000),
            (Reg::Rflags, 0x246, 0x244),
            (Reg::Cr0, 0x8005_0033, 0x11),
            (Reg::Cr3, 0x1000, 1 << 52),
            (Reg::Cr4, 0x6a0, 0x600),
            (Reg::Cr8, 15, 16),
            (Reg::Xcr0, 3, 2),
            (Reg::Dr7, 0x400, 1 << 32),
            (Reg::Efer, 0x500, 0xc00),
            (Reg::Lstar, 0x1000, 1 << 63),
            (Reg::Pat, 0x0606_0606_0606_0606, 2),
        ] {
            assert!(check(reg, RegValue::Word(good)), "{reg:?} {good:#x}");
            assert!(!check(reg, RegValue::Word(bad)), "{reg:?} {bad:#x}");
        }
    }

    #[test]
    fn segments_are_those_that_a_vm_entry_takes() {
        let user = Segment { selector: 0x23, ..flat(0xc0f3) };
        for reg in [Reg::Ss, Reg::Ds, Reg::Es, Reg::Fs, Reg::Gs] {
            assert!(check(reg, RegValue::Segment(user)), "{reg:?}");
            assert!(check(reg, RegValue::Segment(Segment::default())), "{reg:?}");
            assert!(!check(reg, RegValue::Segment(flat(0xc081))), "{reg:?}");
        }
        assert!(!check(Reg::Cs, RegValue::Segment(Segment::default())));
        assert!(!check(Reg::Cs, RegValue::Segment(flat(0xe09b))));
        assert!(!check(Reg::Tr, RegValue::Segment(Segment::default())));
        assert!(!check(Reg::Ds, RegValue::Segment(Segment { limit: 0xf_0000_u32 << 4, ..flat(0xc093) })));
    }
}
