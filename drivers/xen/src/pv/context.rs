//! Registers in Xen's context of a 64-bit PV vCPU (public/arch-x86/xen.h, struct vcpu_guest_context; cpu_user_regs of
//! public/arch-x86/xen-x86_64.h), by a table: which register, where, and whether Xen lets it be changed.

use vmtree_api::RegValue;
use vmtree_api::x86::{Reg, Registers, Segment};

use crate::registers::records::{put, word};

/// The bytes of a context.
pub const BYTES: usize = 5168;
/// The flags of the vCPU, of which one says that it runs the guest's kernel (VGCF_in_kernel).
const FLAGS: usize = 512;
const IN_KERNEL: u64 = 1 << 2;
const FS_BASE: usize = 5144;
const GS_KERNEL: usize = 5152;
const GS_USER: usize = 5160;
/// The local descriptor table: where, and how many entries.
const LDT: (usize, usize) = (4816, 4824);
/// The frames of the global one, 16 of them, and how many entries.
const GDT: (usize, usize) = (4832, 4960);

/// Registers of 64 bits, their places, and whether they can be changed: of the control registers Xen takes TS alone.
const WORDS: &[(Reg, usize, bool)] = &[
    (Reg::Rax, 600, true),
    (Reg::Rcx, 608, true),
    (Reg::Rdx, 616, true),
    (Reg::Rbx, 560, true),
    (Reg::Rsp, 672, true),
    (Reg::Rbp, 552, true),
    (Reg::Rsi, 624, true),
    (Reg::Rdi, 632, true),
    (Reg::R8, 592, true),
    (Reg::R9, 584, true),
    (Reg::R10, 576, true),
    (Reg::R11, 568, true),
    (Reg::R12, 544, true),
    (Reg::R13, 536, true),
    (Reg::R14, 528, true),
    (Reg::R15, 520, true),
    (Reg::Rip, 648, true),
    (Reg::Rflags, 664, true),
    (Reg::Cr0, 4984, false),
    (Reg::Cr2, 5000, false),
    (Reg::Cr3, 5008, false),
    (Reg::Cr4, 5016, false),
    (Reg::Dr0, 5048, true),
    (Reg::Dr1, 5056, true),
    (Reg::Dr2, 5064, true),
    (Reg::Dr3, 5072, true),
    (Reg::Dr6, 5096, true),
    (Reg::Dr7, 5104, true),
];

/// The selectors.
const SELECTORS: &[(Reg, usize)] =
    &[(Reg::Es, 688), (Reg::Cs, 656), (Reg::Ss, 680), (Reg::Ds, 696), (Reg::Fs, 704), (Reg::Gs, 712)];

/// All that there is, and whether it can be changed; of FS and GS the base.
pub fn offers() -> impl Iterator<Item = (Reg, bool)> {
    let words = WORDS.iter().map(|(reg, _, writable)| (*reg, *writable));
    let segments = SELECTORS.iter().map(|(reg, _)| (*reg, matches!(reg, Reg::Fs | Reg::Gs)));
    words.chain(segments).chain([(Reg::KernelGsBase, true)])
}

/// The segment registers, in the order of the architecture.
pub fn segments() -> impl Iterator<Item = Reg> {
    SELECTORS.iter().map(|(reg, _)| *reg)
}

/// Where the base lies that a register has now, and the one that SWAPGS would bring.
fn gs_bases(context: &[u8]) -> (usize, usize) {
    if word(context, FLAGS) & IN_KERNEL != 0 { (GS_KERNEL, GS_USER) } else { (GS_USER, GS_KERNEL) }
}

/// Where the base of a segment lies, if it is here.
fn base(context: &[u8], reg: Reg) -> Option<usize> {
    match reg {
        Reg::Fs => Some(FS_BASE),
        Reg::Gs => Some(gs_bases(context).0),
        _ => None,
    }
}

/// Where a register of 64 bits lies.
fn place(context: &[u8], reg: Reg) -> Option<usize> {
    match reg {
        Reg::KernelGsBase => Some(gs_bases(context).1),
        _ => WORDS.iter().find(|(is, _, _)| *is == reg).map(|(_, at, _)| *at),
    }
}

/// All registers; of segments the selector, and the base where it is not the descriptor's.
#[must_use]
pub fn all(context: &[u8]) -> Registers {
    let mut regs = Registers::default();
    for (reg, _) in offers() {
        let value = match SELECTORS.iter().find(|(is, _)| *is == reg) {
            Some((_, at)) => RegValue::Segment(Segment {
                selector: word(context, *at) as u16,
                base: base(context, reg).map_or(0, |at| word(context, at)),
                ..Segment::default()
            }),
            None => RegValue::Word(place(context, reg).map_or(0, |at| word(context, at))),
        };
        regs.set(reg, value);
    }
    regs
}

/// Puts a register into a context: a word, or the base of FS or GS. False where it has no place.
pub fn set(context: &mut [u8], reg: Reg, value: RegValue) -> bool {
    let (at, value) = match value {
        RegValue::Word(value) => (place(context, reg), value),
        RegValue::Segment(segment) => (base(context, reg), segment.base),
        RegValue::Table(_) => return false,
    };
    let Some(at) = at else { return false };
    put(context, at, &value.to_le_bytes());
    true
}

/// Where a descriptor lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// In the guest's virtual memory.
    Virtual(u64),
    /// In the machine's.
    Machine(u64),
}

/// Where the descriptor of a selector lies, of the local or of the global table; `None` past their ends.
#[must_use]
pub fn descriptor(context: &[u8], selector: u16) -> Option<Place> {
    let index = u64::from(selector >> 3);
    if selector & 4 != 0 {
        let address = word(context, LDT.0).checked_add(index * 8)?;
        return (index < word(context, LDT.1)).then_some(Place::Virtual(address));
    }
    let frame = word(context, GDT.0 + (index / 512) as usize * 8);
    (index < word(context, GDT.1))
        .then(|| frame.checked_mul(4096)?.checked_add(index % 512 * 8))
        .flatten()
        .map(Place::Machine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_register_has_a_place_of_its_own() {
        for in_kernel in [0, IN_KERNEL] {
            let mut context = vec![0; BYTES];
            put(&mut context, FLAGS, &in_kernel.to_le_bytes());
            for (number, (reg, _)) in (1..).zip(offers()) {
                let segment = RegValue::Segment(Segment { base: number, ..Segment::default() });
                if !set(&mut context, reg, RegValue::Word(number)) && !set(&mut context, reg, segment) {
                    let (_, at) = SELECTORS.iter().find(|(is, _)| *is == reg).unwrap();
                    put(&mut context, *at, &number.to_le_bytes());
                }
            }
            let regs = all(&context);
            for (number, (reg, _)) in (1..).zip(offers()) {
                match regs.get(reg) {
                    RegValue::Word(value) => assert_eq!(value, number, "{reg:?}"),
                    RegValue::Segment(segment) => {
                        assert!(segment.base == number || u64::from(segment.selector) == number, "{reg:?}");
                    }
                    RegValue::Table(_) => panic!("{reg:?}"),
                }
            }
        }
    }

    #[test]
    fn gs_is_the_kernels_in_the_kernel() {
        let mut context = vec![0; BYTES];
        put(&mut context, GS_KERNEL, &7_u64.to_le_bytes());
        put(&mut context, GS_USER, &9_u64.to_le_bytes());
        let regs = all(&context);
        assert_eq!((regs.gs.base, regs.kernel_gs_base), (9, 7));
        put(&mut context, FLAGS, &IN_KERNEL.to_le_bytes());
        let regs = all(&context);
        assert_eq!((regs.gs.base, regs.kernel_gs_base), (7, 9));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_context(bytes: Vec<u8>, selector: u16, value: u64) {
            let (_, _) = (all(&bytes), descriptor(&bytes, selector));
            let mut bytes = bytes;
            set(&mut bytes, Reg::Gs, RegValue::Segment(Segment { base: value, ..Segment::default() }));
        }
    }
}
