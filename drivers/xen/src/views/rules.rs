//! Which rules there can be, and what changes from one set of them to the next.

use std::collections::BTreeSet;
use std::ops::Range;

use vmtree_api::views::Rule;
use vmtree_api::{Access, MemoryMap, Result};

/// What it is called in errors.
pub const OP: &str = "watch";

/// All rights, by Xen's number.
pub const ALL: u8 = 7;

/// The bits of Xen's numbers of rights (XENMEM_access_*).
const BITS: [(Access, u8); 3] = [(Access::READ, 1), (Access::WRITE, 2), (Access::EXECUTE, 4)];

/// Xen's number of rights.
#[must_use]
pub fn number(access: Access) -> u8 {
    BITS.iter().filter(|(right, _)| access.contains(*right)).map(|(_, bit)| bit).sum()
}

/// The rights of a number of Xen's.
#[must_use]
pub fn access(number: u8) -> Access {
    let rights = BITS.iter().filter(|(_, bit)| number & bit != 0).map(|(right, _)| *right);
    rights.fold(Access::NONE, Access::union)
}

/// Whether a rule can be: its rights are those of some hardware, and its frames are RAM.
///
/// # Errors
/// [`vmtree_api::ErrorKind::Invalid`], [`vmtree_api::ErrorKind::NotFound`].
pub fn check(rule: &Rule, map: &MemoryMap) -> Result<()> {
    rule.has_rights(OP)?;
    rule.in_ram(map, OP)
}

/// Frames that don't have all rights, in ascending order, and the rights that they have.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rights(Vec<(Range<u64>, u8)>);

impl Rights {
    /// Those that the rules of one view leave.
    #[must_use]
    pub fn of<'a>(rules: impl Iterator<Item = &'a Rule>) -> Self {
        let rights = rules.map(|rule| (rule.frames.start.0..rule.frames.end.0, number(rule.access)));
        Self(rights.filter(|(_, access)| *access != ALL).collect())
    }

    /// Whether all frames have all rights.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each range and its rights.
    pub fn iter(&self) -> impl Iterator<Item = &(Range<u64>, u8)> {
        self.0.iter()
    }

    /// The rights of a frame.
    #[must_use]
    pub fn at(&self, frame: u64) -> u8 {
        let next = self.0.partition_point(|(range, _)| range.end <= frame);
        self.0.get(next).filter(|(range, _)| range.contains(&frame)).map_or(ALL, |(_, access)| *access)
    }

    /// What is to be set to come from these to others.
    #[must_use]
    pub fn changes(&self, to: &Self) -> Vec<(Range<u64>, u8)> {
        let borders: BTreeSet<u64> =
            self.0.iter().chain(&to.0).flat_map(|(range, _)| [range.start, range.end]).collect();
        let borders: Vec<u64> = borders.into_iter().collect();
        let mut changes: Vec<(Range<u64>, u8)> = Vec::new();
        for pair in borders.windows(2) {
            let &[start, end] = pair else { continue };
            let now = to.at(start);
            if now == self.at(start) {
                continue;
            }
            match changes.last_mut() {
                Some((last, access)) if last.end == start && *access == now => last.end = end,
                _ => changes.push((start..end, now)),
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vmtree_api::views::in_order;
    use vmtree_api::{ErrorKind, RegionKind};
    use vmtree_api::{Gfn, Gpa, Region, ViewId};

    fn rule(start: u64, end: u64, access: Access) -> Rule {
        Rule { view: ViewId(0), frames: Gfn(start)..Gfn(end), access, hold: false }
    }

    #[test]
    fn rights_have_xens_numbers() {
        assert_eq!((number(Access::ALL), number(Access::NONE)), (ALL, 0));
        assert_eq!(number(Access::READ.union(Access::EXECUTE)), 5);
        assert_eq!(number(Access::READ.union(Access::WRITE)), 3);
    }

    #[test]
    fn a_rule_is_over_ram_with_rights_that_there_are() {
        let ram =
            |start, end| Region { start: Gpa(start), end: Gpa(end), kind: RegionKind::Ram, block: None };
        let map = MemoryMap::new(1, vec![ram(0, 0x3000), ram(0x3000, 0x5000), ram(0x6000, 0x7000)]);
        assert!(check(&rule(1, 5, Access::READ), &map).is_ok());
        for (bad, kind) in [
            (rule(1, 6, Access::READ), ErrorKind::NotFound),
            (rule(1, 1, Access::READ), ErrorKind::Invalid),
            (rule(1, u64::MAX, Access::READ), ErrorKind::NotFound),
            (rule(1, 2, Access::WRITE), ErrorKind::Invalid),
        ] {
            assert_eq!(check(&bad, &map).unwrap_err().kind(), kind, "{bad:?}");
        }
        assert!(in_order(&[rule(1, 3, Access::READ), rule(3, 4, Access::READ)], OP).is_ok());
        assert!(in_order(&[rule(1, 3, Access::READ), rule(2, 4, Access::READ)], OP).is_err());
    }

    fn any_rights() -> impl Strategy<Value = Rights> {
        proptest::collection::vec((0_u64..5, 1_u64..6, 0_u8..8), 0..8).prop_map(|parts| {
            let mut at = 0;
            let mut rights = Vec::new();
            for (gap, length, access) in parts {
                if access != ALL {
                    rights.push((at + gap..at + gap + length, access));
                }
                at += gap + length;
            }
            Rights(rights)
        })
    }

    proptest! {
        #[test]
        fn changes_lead_from_one_to_the_other(from in any_rights(), to in any_rights()) {
            let mut frames: Vec<u8> = (0..100).map(|frame| from.at(frame)).collect();
            for (range, access) in from.changes(&to) {
                for frame in range {
                    prop_assert_ne!(frames[frame as usize], access, "nothing is set twice");
                    frames[frame as usize] = access;
                }
            }
            let wanted: Vec<u8> = (0..100).map(|frame| to.at(frame)).collect();
            prop_assert_eq!(frames, wanted);
        }
    }
}
