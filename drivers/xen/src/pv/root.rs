//! Where a PV guest's table of its frames begins, by the page that it shares with Xen (public/xen.h, struct shared_info;
//! public/arch-x86/xen.h, struct arch_shared_info). The guest writes all of it.

use crate::hypervisor::Mapped;

/// Where the fields of the architecture begin in a 64-bit guest's page, and how many bytes are looked at.
pub const FIELDS: usize = 3088;
/// So many words: max_pfn, pfn_to_mfn_frame_list_list, nmi_reason, p2m_cr3, p2m_vaddr, p2m_generation.
pub const BYTES: usize = 48;

/// No guest is believed to have more frames: 1 TiB.
pub const MOST: u64 = 1 << 28;

/// The form of the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Table {
    /// A list in the guest's virtual memory.
    List {
        /// The page tables that it is mapped by, a machine address.
        cr3: u64,
        /// Where its first entry lies.
        at: u64,
    },
    /// A tree of three levels: the machine's frame of its top.
    Tree(u64),
}

/// Where the table is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Root {
    /// How many frames the guest may have.
    pub frames: u64,
    /// Where it finds them.
    pub table: Table,
    /// Grows before and after each time that the list's own pages move.
    generation: u64,
}

impl Root {
    /// What the fields say; `None` where the guest has not set them, or has set nonsense.
    #[must_use]
    pub fn of(fields: &[u8; BYTES]) -> Option<Self> {
        let (words, _) = fields.as_chunks::<8>();
        let [max_pfn, tree, _nmi, cr3, at, generation] = *words else { return None };
        let [max_pfn, tree, cr3, at, generation] =
            [max_pfn, tree, cr3, at, generation].map(u64::from_le_bytes);
        let table = match (cr3, tree) {
            (0, 0 | u64::MAX) => return None,
            (0, tree) => Table::Tree(tree),
            // An entry lies in one page.
            (cr3, _) if at.is_multiple_of(8) => Table::List { cr3, at },
            _ => return None,
        };
        (max_pfn > 0).then(|| Self { frames: max_pfn.min(MOST), table, generation })
    }

    /// As it is now in the mapped page.
    #[must_use]
    pub fn read(shared: &dyn Mapped) -> Option<Self> {
        let mut fields = [0; BYTES];
        shared.read(0, FIELDS, &mut fields);
        Self::of(&fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields(words: [u64; 6]) -> [u8; BYTES] {
        let mut fields = [0; BYTES];
        for (field, word) in fields.chunks_mut(8).zip(words) {
            field.copy_from_slice(&word.to_le_bytes());
        }
        fields
    }

    #[test]
    fn a_list_goes_before_a_tree() {
        let of = |words| Root::of(&fields(words)).map(|root| (root.frames, root.table));
        let list = Table::List { cr3: 0x5000, at: 0x8000 };
        assert_eq!(of([0x100, 7, 0, 0x5000, 0x8000, 2]), Some((0x100, list)));
        assert_eq!(of([0x100, u64::MAX, 0, 0x5000, 0x8000, 2]), Some((0x100, list)));
        assert_eq!(of([0x100, 7, 0, 0, 0x8000, 0]), Some((0x100, Table::Tree(7))));
        for nothing in
            [[0x100, 0, 0, 0, 0x8000, 0], [0x100, u64::MAX, 0, 0, 0, 0], [0, 7, 0, 0x5000, 0x8000, 0]]
        {
            assert_eq!(of(nothing), None, "{nothing:x?}");
        }
        assert_eq!(of([0x100, 7, 0, 0x5000, 0x8001, 0]), None, "no entry lies in two pages");
    }

    proptest! {
        #[test]
        fn any_fields_are_a_root_or_none(words: [u64; 6]) {
            if let Some(root) = Root::of(&fields(words)) {
                prop_assert!(root.frames > 0 && root.frames <= MOST);
            }
        }
    }
}
