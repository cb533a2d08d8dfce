//! Inode numbers. Those of the table are computed; a name with a parameter gets one for as long as the kernel knows it.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;

use crate::tree::{Place, Tree};

const ROOT: u64 = 1;
/// Numbers from here on are given out; those below are computed.
const GIVEN_OUT: u64 = 1 << 63;

/// A file whose name has a parameter.
struct Given {
    place: Place,
    lookups: u64,
    /// The directory and the names it was looked up by; any order of the parameters is the same file.
    parent: u64,
    names: HashSet<String>,
    /// Whether it was not looked up since the last sweep.
    idle: bool,
}

#[derive(Default)]
struct State {
    places: HashMap<u64, Given>,
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
            GIVEN_OUT.. => self.0.lock().places.get(&ino).map(|given| given.place),
            _ => {
                let row = (ino >> 48).checked_sub(1)?;
                Some(Place { row: row as u16, vcpu: (ino >> 32) as u16, item: ino as u32, param: 0 })
            }
        }
    }

    /// The number of a place, without a promise that the kernel will forget it: for readdir.
    pub fn number(place: Place) -> u64 {
        match place {
            Place::ROOT => ROOT,
            Place { row, vcpu, item, .. } => {
                (u64::from(row) + 1) << 48 | u64::from(vcpu) << 32 | u64::from(item)
            }
        }
    }

    /// The number of a place for an answer to lookup of `name`, which the kernel counts until it forgets.
    pub fn looked_up(&self, tree: &Tree, place: Place, name: &str) -> u64 {
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
        let parent = Self::number(tree.parent(place));
        let given = state.places.entry(ino).or_insert_with(|| Given {
            place,
            lookups: 0,
            parent,
            names: HashSet::new(),
            idle: false,
        });
        given.lookups += 1;
        given.idle = false;
        if !given.names.contains(name) {
            given.names.insert(name.to_owned());
        }
        ino
    }

    /// The kernel forgets `count` lookups of an inode; what place that is of, if its name has a parameter.
    pub fn forget(&self, ino: u64, count: u64) -> Option<Place> {
        if ino < GIVEN_OUT {
            return None;
        }
        let mut state = self.0.lock();
        let given = state.places.get_mut(&ino)?;
        given.lookups = given.lookups.saturating_sub(count);
        let place = given.place;
        if given.lookups == 0 {
            state.places.remove(&ino);
            state.numbers.remove(&place);
        }
        Some(place)
    }

    /// The names with parameters that nobody looked up since the last sweep, but for files that are `open`, each with
    /// the number of its directory. The kernel keeps such names until it lacks memory, and what they mean is kept here
    /// as long.
    pub fn sweep(&self, open: &HashSet<u64>) -> Vec<(u64, String)> {
        let mut idle = Vec::new();
        for (ino, given) in &mut self.0.lock().places {
            if given.idle && !open.contains(ino) {
                let parent = given.parent;
                idle.extend(given.names.drain().map(|name| (parent, name)));
            }
            given.idle = true;
        }
        idle
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
            Place { row: 40, vcpu: u16::MAX, item: u32::MAX, param: 0 },
        ] {
            assert_eq!(inodes.place(Inodes::number(place)), Some(place));
        }
        assert_eq!(inodes.place(GIVEN_OUT + 5), None);
        assert_eq!(inodes.place(0), None);
    }
}
