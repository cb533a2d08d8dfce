//! CPUID: what this CPU really has, and no more.

/// EAX, EBX, ECX and EDX.
pub type Leaf = [u32; 4];

const VENDOR: &[u8; 12] = b"VMTREE BUILT";
/// Family 6, model 0x5e, stepping 0.
const SIGNATURE: u32 = 0x0005_06e0;
/// Leaf 1 EDX: PSE TSC MSR PAE CX8 APIC PGE CMOV PAT SSE SSE2. No x87 (bit 0), no FXSAVE (bit 24).
const EDX_1: u32 =
    1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 13 | 1 << 15 | 1 << 16 | 3 << 25;
/// Leaf 1 ECX: CX16 POPCNT XSAVE.
const ECX_1: u32 = 1 << 13 | 1 << 23 | 1 << 26;
/// Leaf 1 ECX: CR4.OSXSAVE as it is.
const OSXSAVE: u32 = 1 << 27;
/// Leaf 7 EBX: FSGSBASE SMEP SMAP.
const EBX_7: u32 = 1 | 1 << 7 | 1 << 20;
/// Leaf 0x80000001 EDX: SYSCALL NX 1-GiB-pages RDTSCP LM.
const EDX_EXTENDED: u32 = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29;
/// Leaf 0x80000001 ECX: LAHF in 64-bit mode, LZCNT. (TZCNT is executed too, but its bit stands for all of BMI1.)
const ECX_EXTENDED: u32 = 1 | 1 << 5;

fn word(text: &[u8], index: usize) -> u32 {
    text.iter().skip(index * 4).take(4).rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

/// A leaf, for the vCPU with this APIC id of so many. Leaves that are not there are zeros.
#[must_use]
pub fn leaf(leaf: u32, subleaf: u32, apic_id: u32, vcpus: u32, osxsave: bool) -> Leaf {
    let brand = b"vmtree built-in machine\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    match (leaf, subleaf) {
        (0, _) => [0x16, word(VENDOR, 0), word(VENDOR, 2), word(VENDOR, 1)],
        (1, _) => [SIGNATURE, apic_id << 24 | vcpus << 16, ECX_1 | if osxsave { OSXSAVE } else { 0 }, EDX_1],
        (7, 0) => [0, EBX_7, 0, 0],
        // x87 and SSE, in an area of 576 bytes whatever XCR0 enables. No XSAVEOPT, no compact form.
        (0xd, 0) => [super::xsave::STATES as u32, super::xsave::AREA as u32, super::xsave::AREA as u32, 0],
        // The TSC counts 10 for each tick of a 100 MHz crystal, which is also the APIC timer's clock.
        (0x15, _) => [1, 10, 100_000_000, 0],
        (0x16, _) => [1000, 1000, 100, 0],
        (0x8000_0000, _) => [0x8000_0008, 0, 0, 0],
        (0x8000_0001, _) => [0, 0, ECX_EXTENDED, EDX_EXTENDED],
        (0x8000_0002..=0x8000_0004, _) => {
            let at = (leaf - 0x8000_0002) as usize * 4;
            [word(brand, at), word(brand, at + 1), word(brand, at + 2), word(brand, at + 3)]
        }
        // The TSC never stops and never changes its pace.
        (0x8000_0007, _) => [0, 0, 0, 1 << 8],
        (0x8000_0008, _) => [super::check::PHYSICAL_BITS | 48 << 8, 0, 0, 0],
        _ => [0; 4],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vendor_is_spelt_in_the_manuals_order() {
        let [highest, b, c, d] = leaf(0, 0, 0, 1, false);
        let text: Vec<u8> = [b, d, c].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(text, VENDOR);
        assert_eq!(highest, 0x16);
        assert_eq!(leaf(highest + 1, 0, 0, 1, false), [0; 4]);
        assert_eq!(leaf(1, 0, 3, 4, false)[1], 0x0304_0000);
    }
}
