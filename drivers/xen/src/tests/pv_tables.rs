//! A PV guest's tables of its frames, good ones and any others.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::Ram;
use crate::error::number::{EBUSY, EINVAL};
use crate::hypervisor::{Frames, MachineTable};
use crate::pv::Pv;
use crate::pv::frames::PvFrames;
use crate::pv::root::FIELDS;

/// The page shared with Xen.
pub const SHARED: u64 = 0x900;
/// The tables of page tables, topmost first, and the pages of entries.
const WALK: [u64; 4] = [0x810, 0x811, 0x812, 0x813];
const TREE: [u64; 2] = [0x800, 0x801];
pub const LEAF: u64 = 0x802;
/// Where the list lies in the guest's virtual memory, with each index of the tables different.
const LIST: u64 = 0xffff_c900_0040_3000;
/// The frames of the guest, and the machine's.
pub const OWN: u64 = 64;
const MACHINE: Range<u64> = 0x1000..0x1000 + OWN;

/// Fields of the shared page, by word.
pub mod field {
    use super::FIELDS;
    pub const MAX: usize = FIELDS / 8;
    pub const TREE: usize = MAX + 1;
    pub const CR3: usize = MAX + 3;
    pub const LIST: usize = MAX + 4;
    pub const GENERATION: usize = MAX + 5;
}

/// Which of the machine's frames is at one of the guest's: none in order.
pub fn machine(own: u64) -> u64 {
    MACHINE.start + own * 37 % OWN
}

/// Xen's table.
#[derive(Default)]
pub struct M2p(pub Mutex<BTreeMap<u64, u64>>);

impl MachineTable for M2p {
    fn own(&self, machine: u64) -> std::io::Result<u64> {
        let table = self.0.lock();
        table.get(&machine).copied().ok_or_else(|| std::io::Error::from_raw_os_error(EINVAL))
    }
}

/// A guest with a list, or with a tree.
pub fn guest(list: bool) -> (Arc<Ram>, Arc<M2p>) {
    let ram = Arc::new(Ram::new(&[MACHINE, 0x800..0x814, SHARED..SHARED + 1]));
    let m2p = Arc::new(M2p::default());
    for own in 0..OWN {
        ram.set(LEAF, own as usize, machine(own));
        m2p.0.lock().insert(machine(own), own);
    }
    (OWN..512).for_each(|own| ram.set(LEAF, own as usize, u64::MAX));
    for (level, (frame, next)) in WALK.iter().zip(WALK.iter().skip(1).chain([&LEAF])).enumerate() {
        let index = LIST >> (39 - 9 * level) & 511;
        ram.set(*frame, index as usize, next << 12 | 7);
    }
    ram.set(TREE[0], 0, TREE[1]);
    ram.set(TREE[1], 0, LEAF);
    ram.set(SHARED, field::MAX, OWN + 20);
    if list {
        ram.set(SHARED, field::TREE, u64::MAX);
        ram.set(SHARED, field::CR3, WALK[0] << 12);
        ram.set(SHARED, field::LIST, LIST);
    } else {
        ram.set(SHARED, field::TREE, TREE[0]);
    }
    (ram, m2p)
}

pub fn pv(m2p: Arc<M2p>) -> Pv {
    Pv { shared_info: SHARED, m2p }
}

fn there(frames: &PvFrames, asked: &[u64]) -> Vec<u64> {
    let mut there = vec![false; asked.len()];
    frames.present(asked, &mut there).unwrap();
    asked.iter().zip(there).filter(|(_, there)| *there).map(|(frame, _)| *frame).collect()
}

#[test]
fn both_forms_say_the_same() {
    for list in [true, false] {
        let (ram, _) = guest(list);
        let frames = PvFrames::new(Arc::clone(&ram) as Arc<dyn Frames>, SHARED);
        assert_eq!(frames.told().unwrap(), Some(OWN + 20));
        let all: Vec<u64> = (0..OWN + 100).collect();
        assert_eq!(there(&frames, &all), (0..OWN).collect::<Vec<_>>(), "list: {list}");
        let (mapped, found) = frames.map(&[3, OWN, 7]).unwrap();
        assert_eq!(found, [true, false, true]);
        assert_eq!([0, 2].map(|page| mapped.machine(page)), [3, 7].map(|own| Some(machine(own))));
        assert!(!mapped.moved(0) && !mapped.moved(1));
        ram.set(LEAF, 3, machine(9));
        assert!(mapped.moved(0) && !mapped.moved(2));
        ram.set(SHARED, field::GENERATION, 2);
        assert!(mapped.moved(2), "the list itself has moved");
    }
}

#[test]
fn entries_that_are_no_memory_of_the_guest_are_holes() {
    let (ram, _) = guest(true);
    let frames = PvFrames::new(Arc::clone(&ram) as Arc<dyn Frames>, SHARED);
    // None, a foreign frame, a device's, one that no machine has, and one that is not the guest's.
    let others = [u64::MAX, machine(0) | 1 << 62, machine(1) | 1 << 63, 1 << 41, 0x5000];
    others.iter().enumerate().for_each(|(own, entry)| ram.set(LEAF, own, *entry));
    let all: Vec<u64> = (0..8).collect();
    assert_eq!(there(&frames, &all), [5, 6, 7]);
    assert_eq!(frames.map(&all).unwrap().1, [false, false, false, false, false, true, true, true]);
    assert_eq!(there(&frames, &[u64::MAX, 1 << 60, 5]), [5]);
}

#[test]
fn a_guest_that_has_said_nothing_is_busy() {
    let (ram, _) = guest(false);
    ram.set(SHARED, field::TREE, 0);
    let frames = PvFrames::new(Arc::clone(&ram) as Arc<dyn Frames>, SHARED);
    assert_eq!(frames.told().unwrap_err().raw_os_error(), Some(EBUSY));
    assert!(frames.map(&[0]).is_err());
    let nowhere = PvFrames::new(ram as Arc<dyn Frames>, 5);
    assert!(nowhere.told().is_err());
}

/// What a guest may write into a table: frames that are there, any others, entries of page tables.
fn word() -> impl Strategy<Value = u64> {
    let table = prop_oneof![0x800..0x814_u64, MACHINE, any::<u64>()];
    (table, 0..4_u8).prop_map(|(frame, kind)| match kind {
        0 => frame,
        1 => frame << 12 | 7,
        2 => frame << 12 | 0x87,
        _ => frame | 1 << 62,
    })
}

proptest! {
    #[test]
    fn whatever_the_tables_say_only_the_guests_memory_is_found(
        writes in proptest::collection::vec((prop_oneof![0x800..0x814_u64, Just(SHARED)], 0..512_usize, word()), 0..60),
        fields in proptest::collection::vec(prop_oneof![word(), Just(LIST), Just(u64::MAX - 7), Just(0)], 6),
        set_fields: bool,
        list: bool,
        asked in proptest::collection::vec(prop_oneof![0..1024_u64, any::<u64>()], 1..300),
    ) {
        let (ram, _) = guest(list);
        writes.iter().for_each(|(frame, index, value)| ram.set(*frame, *index, *value));
        if set_fields {
            fields.iter().enumerate().for_each(|(n, value)| ram.set(SHARED, field::MAX + n, *value));
        }
        let frames = PvFrames::new(Arc::clone(&ram) as Arc<dyn Frames>, SHARED);
        let mut there = vec![false; asked.len()];
        let _ = frames.present(&asked, &mut there);
        if let Ok((mapped, found)) = frames.map(&asked) {
            for (page, _) in found.iter().enumerate().filter(|(_, found)| **found) {
                let machine = mapped.machine(page).unwrap();
                prop_assert!(MACHINE.contains(&machine) || (0x800..=SHARED).contains(&machine));
                mapped.read(page, 4000, &mut [0; 96]);
            }
            prop_assert_eq!(found, there);
            prop_assert!((0..asked.len()).all(|page| !mapped.moved(page)));
        }
    }
}
