//! The page walk, without effects: for whoever looks at a guest, and for the built-in machine, which sets A and D
//! by the trail that a walk leaves (Intel SDM volume 3A, chapter 4).

use super::bits::{CR0_PG, CR4_LA57, CR4_PAE, CR4_PSE, EFER_LMA, EFER_NXE};
use crate::{Access, Gpa, Gva};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Bits 51:12, the widest physical address of a table entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The registers that decide how an address is translated.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[allow(missing_docs, reason = "the fields bear the manual's names")]
pub struct PagingMode {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
}

impl From<&super::Registers> for PagingMode {
    fn from(regs: &super::Registers) -> Self {
        Self { cr0: regs.cr0, cr3: regs.cr3, cr4: regs.cr4, efer: regs.efer }
    }
}

/// The size of a translation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum PageSize {
    Size4K,
    Size2M,
    Size4M,
    Size1G,
}

impl PageSize {
    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::Size4K => 4 << 10,
            Self::Size2M => 2 << 20,
            Self::Size4M => 4 << 20,
            Self::Size1G => 1 << 30,
        }
    }
}

/// A table entry that the walk used.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Entry {
    /// Where it lies.
    pub gpa: Gpa,
    /// What it held.
    pub value: u64,
}

/// A translation that exists. Whether an access may use it is for the caller to say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Walk {
    /// Where the address lies.
    pub gpa: Gpa,
    /// How large the page is.
    pub size: PageSize,
    /// What all levels together permit; read always.
    pub rights: Access,
    /// Whether user mode may use it.
    pub user: bool,
    entries: [Entry; 5],
    depth: usize,
}

impl Walk {
    /// The entries used, the topmost first; none with paging off.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        self.entries.get(..self.depth).unwrap_or_default()
    }
}

/// Why an address has no translation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// The upper bits don't repeat the highest translated one.
    NonCanonical,
    /// The entry at this level (1 is the page table) is not present.
    NotPresent(u8),
    /// The entry at this level sets a reserved bit.
    Reserved(u8),
}

/// The shape of a paging mode: how many levels, and how wide an entry is.
struct Shape {
    levels: u8,
    entry_bytes: u64,
    index_bits: u32,
}

fn shape(mode: &PagingMode) -> Option<Shape> {
    if mode.cr0 & CR0_PG == 0 {
        return None;
    }
    let (levels, entry_bytes, index_bits) = match (mode.efer & EFER_LMA != 0, mode.cr4 & CR4_PAE != 0) {
        (true, _) if mode.cr4 & CR4_LA57 != 0 => (5, 8, 9),
        (true, _) => (4, 8, 9),
        (false, true) => (3, 8, 9),
        (false, false) => (2, 4, 10),
    };
    Some(Shape { levels, entry_bytes, index_bits })
}

/// Translates `gva`, reading table entries (8 bytes, or the low 4 of them in 32-bit paging) by `read`.
///
/// # Errors
/// What `read` fails with.
pub fn walk<E>(
    mode: &PagingMode,
    gva: Gva,
    mut read: impl FnMut(Gpa) -> Result<u64, E>,
) -> Result<Result<Walk, Fault>, E> {
    let mut found = Walk {
        gpa: Gpa(gva.0 & 0xffff_ffff),
        size: PageSize::Size4K,
        rights: Access::ALL,
        user: true,
        entries: [Entry::default(); 5],
        depth: 0,
    };
    let Some(shape) = shape(mode) else { return Ok(Ok(found)) };
    let long = mode.efer & EFER_LMA != 0;
    if long && !canonical(gva, 12 + 9 * u32::from(shape.levels)) {
        return Ok(Err(Fault::NonCanonical));
    }
    let gva = if long { gva.0 } else { gva.0 & 0xffff_ffff };
    // PAE's top table has 4 entries and is aligned to 32 bytes only.
    let mut table = if shape.levels == 3 { mode.cr3 & 0xffff_ffe0 } else { mode.cr3 & ADDRESS };
    for level in (1..=shape.levels).rev() {
        let shift = 12 + shape.index_bits * u32::from(level - 1);
        let index = (gva >> shift) & ((1 << shape.index_bits) - 1);
        let gpa = Gpa(table + index * shape.entry_bytes);
        let mut value = read(gpa)?;
        if shape.entry_bytes == 4 {
            value &= 0xffff_ffff;
        }
        if value & PRESENT == 0 {
            return Ok(Err(Fault::NotPresent(level)));
        }
        if value & NO_EXECUTE != 0 && mode.efer & EFER_NXE == 0 {
            return Ok(Err(Fault::Reserved(level)));
        }
        note(&mut found, Entry { gpa, value }, level == 3 && shape.levels == 3);
        let leaf = match (level, value & LARGE != 0) {
            (1, _) => Some(PageSize::Size4K),
            (2, true) if shape.entry_bytes == 8 => Some(PageSize::Size2M),
            (2, true) if mode.cr4 & CR4_PSE != 0 => Some(PageSize::Size4M),
            (3, true) if long => Some(PageSize::Size1G),
            (4.., true) => return Ok(Err(Fault::Reserved(level))),
            _ => None,
        };
        let Some(size) = leaf else {
            table = value & ADDRESS;
            continue;
        };
        let Some(base) = leaf_base(value, size) else { return Ok(Err(Fault::Reserved(level))) };
        found.size = size;
        found.gpa = Gpa(base + gva % size.bytes());
        break;
    }
    Ok(Ok(found))
}

fn canonical(gva: Gva, bits: u32) -> bool {
    let unused = 64 - bits;
    ((gva.0 << unused) as i64 >> unused) as u64 == gva.0
}

/// Adds an entry to the trail and its restrictions to the rights; a PAE top entry has none.
fn note(found: &mut Walk, entry: Entry, top_of_pae: bool) {
    if let Some(slot) = found.entries.get_mut(found.depth) {
        *slot = entry;
        found.depth += 1;
    }
    if top_of_pae {
        return;
    }
    if entry.value & WRITABLE == 0 {
        found.rights = found.rights.without(Access::WRITE);
    }
    if entry.value & NO_EXECUTE != 0 {
        found.rights = found.rights.without(Access::EXECUTE);
    }
    found.user &= entry.value & USER != 0;
}

/// The first address of the page that a leaf entry maps; `None` if a bit below it is set (bit 12 is PAT there).
fn leaf_base(value: u64, size: PageSize) -> Option<u64> {
    match size {
        PageSize::Size4K => Some(value & ADDRESS),
        // PSE-36: bits 20:13 are bits 39:32 of the address.
        PageSize::Size4M => Some((value & 0xffc0_0000) | ((value >> 13 & 0xff) << 32)),
        PageSize::Size2M | PageSize::Size1G => {
            let address = value & ADDRESS & !(1 << 12);
            address.is_multiple_of(size.bytes()).then_some(address)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::convert::Infallible;

    const LONG: PagingMode = PagingMode { cr0: CR0_PG, cr3: 0x1000, cr4: CR4_PAE, efer: EFER_LMA | EFER_NXE };

    fn translate(mode: &PagingMode, tables: &[(u64, u64)], gva: u64) -> Result<Walk, Fault> {
        let tables: HashMap<_, _> = tables.iter().copied().collect();
        let read = |gpa: Gpa| Ok::<_, Infallible>(tables.get(&gpa.0).copied().unwrap_or(0));
        let Ok(found) = walk(mode, Gva(gva), read);
        found
    }

    #[test]
    fn without_paging_an_address_is_itself() {
        let found = translate(&PagingMode::default(), &[], 0x1234).unwrap();
        assert_eq!((found.gpa, found.entries().len()), (Gpa(0x1234), 0));
    }

    #[test]
    fn four_levels_combine_their_rights() {
        let tables = [(0x1000, 0x2007), (0x2000, 0x3003), (0x3000, 0x4007), (0x4008, 0x9005 | NO_EXECUTE)];
        let found = translate(&LONG, &tables, 0x1abc).unwrap();
        assert_eq!(found.gpa, Gpa(0x9abc));
        assert_eq!((found.rights, found.user), (Access::READ, false));
        assert_eq!(found.entries().len(), 4);
        assert_eq!(translate(&LONG, &tables, 0x2000), Err(Fault::NotPresent(1)));
        assert_eq!(translate(&LONG, &tables, 1 << 47), Err(Fault::NonCanonical));
    }

    #[test]
    fn large_pages_must_be_aligned() {
        let good = [(0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x0060_0087)];
        let found = translate(&LONG, &good, 0x12345).unwrap();
        assert_eq!((found.gpa, found.size), (Gpa(0x61_2345), PageSize::Size2M));
        let bad = [(0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x0061_0087)];
        assert_eq!(translate(&LONG, &bad, 0x12345), Err(Fault::Reserved(2)));
        let giant = [(0x1000, 0x2007), (0x2000, 0x4000_0087)];
        assert_eq!(translate(&LONG, &giant, 0x12345).unwrap().gpa, Gpa(0x4001_2345));
    }

    #[test]
    fn no_execute_is_reserved_unless_enabled() {
        let mode = PagingMode { efer: EFER_LMA, ..LONG };
        assert_eq!(translate(&mode, &[(0x1000, 0x2007 | NO_EXECUTE)], 0), Err(Fault::Reserved(4)));
    }

    #[test]
    fn legacy_paging_has_two_levels_and_pae_three() {
        let legacy = PagingMode { cr0: CR0_PG, cr3: 0x1000, cr4: CR4_PSE, efer: 0 };
        let tables = [(0x1004, 0x2007), (0x2000, 0x7007), (0x1008, 0x0080_0087)];
        assert_eq!(translate(&legacy, &tables, 0x40_0123).unwrap().gpa, Gpa(0x7123));
        assert_eq!(translate(&legacy, &tables, 0x80_0123).unwrap().gpa, Gpa(0x80_0123));
        let pae = PagingMode { cr0: CR0_PG, cr3: 0x1020, cr4: CR4_PAE, efer: 0 };
        let tables = [(0x1020, 0x2001), (0x2000, 0x3007), (0x3000, 0x8007)];
        let found = translate(&pae, &tables, 0x123).unwrap();
        assert_eq!((found.gpa, found.rights, found.user), (Gpa(0x8123), Access::ALL, true));
    }
}
