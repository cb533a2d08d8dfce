//! Hidden parts of segment registers: a PV vCPU has those of the descriptors that its selectors name, for Xen loads them anew
//! each time that it runs.

use vmtree_api::x86::Segment;

/// From this index on a GDT is Xen's (FIRST_RESERVED_GDT_ENTRY).
const RESERVED: u16 = 14 * 512;
/// What Xen has there for all guests: flat segments of ring 3, of 32-bit code, of data, and of 64-bit code
/// (FLAT_RING3_CS32, FLAT_RING3_SS32 and FLAT_RING3_CS64 of public/arch-x86/xen-x86_64.h).
const FLAT: [(u16, u64); 3] =
    [(0xe020, 0x00cf_fb00_0000_ffff), (0xe028, 0x00cf_f300_0000_ffff), (0xe030, 0x00af_fb00_0000_ffff)];

/// The descriptor that Xen has for a selector of its own part of the table.
#[must_use]
pub fn of_xen(selector: u16) -> Option<u64> {
    FLAT.iter().find(|(of, _)| *of == selector & !7).map(|(_, descriptor)| *descriptor)
}

/// Whether a selector names a descriptor of Xen's part of the table.
#[must_use]
pub fn is_reserved(selector: u16) -> bool {
    selector & 4 == 0 && selector >> 3 >= RESERVED
}

/// Whether a selector names none.
#[must_use]
pub fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// A segment register with this selector and descriptor (Intel SDM volume 3A, figure 3-8).
#[must_use]
pub fn segment(selector: u16, descriptor: u64) -> Segment {
    let base = (descriptor >> 16 & 0xff_ffff) | (descriptor >> 56 << 24);
    let limit = ((descriptor & 0xffff) | (descriptor >> 32 & 0xf_0000)) as u32;
    let attr = (descriptor >> 40 & 0xf0ff) as u16;
    // With G, bit 15, it counts pages.
    let limit = if attr >> 15 != 0 { limit << 12 | 0xfff } else { limit };
    Segment { selector, base, limit, attr }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn flat_segments_are_flat() {
        let code = segment(0xe033, of_xen(0xe033).unwrap());
        assert_eq!((code.base, code.limit, code.attr), (0, u32::MAX, 0xa0fb));
        let stack = segment(0xe02b, of_xen(0xe02b).unwrap());
        assert_eq!((stack.base, stack.limit, stack.attr), (0, u32::MAX, 0xc0f3));
        assert!(is_reserved(0xe033) && !is_reserved(0x33) && !is_reserved(0xe037));
        assert!(is_null(3) && !is_null(4) && of_xen(0xe038).is_none());
    }

    proptest! {
        #[test]
        fn base_and_limit_are_put_together(base: u32, limit in 0_u32..1 << 20, attr in 0_u64..1 << 8) {
            let (low, high) = (u64::from(base & 0xff_ffff), u64::from(base >> 24));
            let (limit_low, limit_high) = (u64::from(limit & 0xffff), u64::from(limit >> 16));
            let found = segment(8, limit_low | low << 16 | attr << 40 | limit_high << 48 | high << 56);
            prop_assert_eq!((found.base, found.limit, u64::from(found.attr)), (u64::from(base), limit, attr));
        }
    }
}
