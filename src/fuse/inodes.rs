//! Inode numbers. Those of the table are computed; a name with a parameter gets one for as long as the kernel knows it.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::tree::{Place, Tree};

const ROOT: u64 = 1;
/// Numbers from here on are given out; those below are computed.
const GIVEN_OUT: u64 = 1 << 63;

#[derive(Default)]
struct State {
    places: HashMap<u64, (Place, u64)>,
    numbers: HashMap<Place, u64>,
    next: u64,
}

/// The inode numbers of one mount.
#[derive(Default)]
pub struct Inodes(Mutex<State>);

impl Inodes {
    /// The place of an inode that the kernel knows.
    pub fn place(&self, ino: u64) -> Option<Place> {
        match ino {
            ROOT => Some(Place::ROOT),
            GIVEN_OUT.. => self.0.lock().places.get(&ino).map(|(place, _)| *place),
            _ => {
                let row = (ino >> 32).checked_sub(1)?;
                Some(Place { row: row as u16, vcpu: (ino >> 16) as u16, item: ino as u16, param: 0 })
            }
        }
    }

    /// The number of a place, without a promise that the kernel will forget it: for readdir.
    pub fn number(place: Place) -> u64 {
        match place {
            Place::ROOT => ROOT,
            Place { row, vcpu, item, .. } => {
                (u64::from(row) + 1) << 32 | u64::from(vcpu) << 16 | u64::from(item)
            }
        }
    }

    /// The number of a place for an answer to lookup, which the kernel counts until it forgets.
    pub fn looked_up(&self, tree: &Tree, place: Place) -> u64 {
        if !tree.has_parameter(place) {
            return Self::number(place);
        }
        let mut state = self.0.lock();
        let known = state.numbers.get(&place).copied();
        let ino = known.unwrap_or_else(|| {
            state.next += 1;
            GIVEN_OUT + state.next
        });
        state.numbers.insert(place, ino);
        state.places.entry(ino).or_insert((place, 0)).1 += 1;
        ino
    }

    /// The kernel forgets `count` lookups of an inode.
    pub fn forget(&self, ino: u64, count: u64) {
        if ino < GIVEN_OUT {
            return;
        }
        let mut state = self.0.lock();
        let Some((place, lookups)) = state.places.get_mut(&ino) else { return };
        *lookups = lookups.saturating_sub(count);
        if *lookups == 0 {
            let place = *place;
            state.places.remove(&ino);
            state.numbers.remove(&place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_table_lead_back() {
        let inodes = Inodes::default();
        for place in [
            Place::ROOT,
            Place { row: 1, vcpu: 0, item: 0, param: 0 },
            Place { row: 17, vcpu: 63, item: 54, param: 0 },
        ] {
            assert_eq!(inodes.place(Inodes::number(place)), Some(place));
        }
        assert_eq!(inodes.place(GIVEN_OUT + 5), None);
        assert_eq!(inodes.place(0), None);
    }
}
