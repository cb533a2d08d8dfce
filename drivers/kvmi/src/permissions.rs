//! SLAT permissions as ranges of frames. KVMI can't read them back, so what was set is kept here.

use std::collections::BTreeSet;
use std::ops::Range;

use vmtree_api::views::Rule;
use vmtree_api::{Access, Error, ErrorKind, Gfn, MemoryMap, Result, Span, ViewId};

const OP: &str = "watch";

/// Frames whose rights are to be set.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// The view.
    pub view: ViewId,
    /// The frames, end excluded.
    pub frames: Range<u64>,
    /// The rights before.
    pub old: Access,
    /// The rights to set.
    pub new: Access,
}

fn at(rules: &[Rule], view: ViewId, gfn: u64) -> Access {
    find(rules, view, gfn).map_or(Access::ALL, |rule| rule.access)
}

/// The rule that a frame has in a view.
#[must_use]
pub fn find(rules: &[Rule], view: ViewId, gfn: u64) -> Option<&Rule> {
    rules.iter().find(|rule| rule.view == view && rule.frames.contains(&Gfn(gfn)))
}

/// What has to be set to come from `old` to `new`.
#[must_use]
pub fn changes(old: &[Rule], new: &[Rule]) -> Vec<Change> {
    let views: BTreeSet<u32> = old.iter().chain(new).map(|rule| rule.view.0).collect();
    views.into_iter().flat_map(|view| of_view(ViewId(view), old, new)).collect()
}

fn of_view(view: ViewId, old: &[Rule], new: &[Rule]) -> Vec<Change> {
    let of = |rules: &[Rule]| rules.iter().filter(|rule| rule.view == view).cloned().collect::<Vec<_>>();
    let (old, new) = (of(old), of(new));
    let borders = |rule: &Rule| [rule.frames.start.0, rule.frames.end.0];
    let borders: BTreeSet<u64> = old.iter().chain(&new).flat_map(borders).collect();
    let borders: Vec<u64> = borders.into_iter().collect();
    let mut changes: Vec<Change> = Vec::new();
    for pair in borders.windows(2) {
        let &[start, end] = pair else { continue };
        let (before, after) = (at(&old, view, start), at(&new, view, start));
        if before == after {
            continue;
        }
        match changes.last_mut() {
            Some(last) if last.frames.end == start && (last.old, last.new) == (before, after) => {
                last.frames.end = end;
            }
            _ => changes.push(Change { view, frames: start..end, old: before, new: after }),
        }
    }
    changes
}

/// Whether the hardware has such rights, and every frame is memory.
///
/// # Errors
/// [`ErrorKind::Invalid`], [`ErrorKind::NotFound`].
pub fn check(rule: &Rule, map: &MemoryMap) -> Result<()> {
    if rule.access.contains(Access::WRITE) && !rule.access.contains(Access::READ) {
        let why = format!("{}: EPT has no right to write without the right to read", rule.access);
        return Err(Error::new(ErrorKind::Invalid, OP, why));
    }
    let mut gfn = rule.frames.start;
    while gfn < rule.frames.end {
        match gfn.gpa().map(|gpa| map.at(gpa)) {
            Some(Span::Region(region)) if region.holds_data() => {
                let next = Gfn(region.end.0.div_ceil(vmtree_api::PAGE_SIZE));
                gfn = if next > gfn { next } else { rule.frames.end };
            }
            _ => {
                let why = format!("there is no memory at frame {:#x}; mem.map shows where there is", gfn.0);
                return Err(Error::new(ErrorKind::NotFound, OP, why));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use vmtree_api::{Gpa, Region, RegionKind};

    fn rule(view: u32, frames: Range<u64>, access: Access) -> Rule {
        Rule { view: ViewId(view), frames: Gfn(frames.start)..Gfn(frames.end), access, hold: false }
    }

    /// Rules as the hub gives them: sorted by view and frame, not overlapping.
    fn rules() -> impl Strategy<Value = Vec<Rule>> {
        let one =
            (0u32..2, 0u64..4, 1u64..5, prop::sample::select(vec![Access::NONE, Access::READ, Access::ALL]));
        prop::collection::vec(one, 0..12).prop_map(|parts| {
            let mut at = [0, 0];
            let mut all = Vec::new();
            for (view, gap, length, access) in parts {
                let start = at[view as usize] + gap;
                at[view as usize] = start + length;
                all.push(rule(view, start..start + length, access));
            }
            all.sort_by_key(|rule| (rule.view.0, rule.frames.start));
            all
        })
    }

    fn frames(rules: &[Rule]) -> BTreeMap<(u32, u64), Access> {
        let frames = rules.iter().flat_map(|rule| {
            (rule.frames.start.0..rule.frames.end.0).map(|gfn| ((rule.view.0, gfn), rule.access))
        });
        frames.filter(|(_, access)| *access != Access::ALL).collect()
    }

    proptest! {
        #[test]
        fn changes_lead_from_the_old_rules_to_the_new(old in rules(), new in rules()) {
            let mut model = frames(&old);
            for change in changes(&old, &new) {
                prop_assert!(change.frames.start < change.frames.end && change.old != change.new);
                for gfn in change.frames.clone() {
                    let before = model.insert((change.view.0, gfn), change.new).unwrap_or(Access::ALL);
                    prop_assert_eq!(before, change.old);
                }
            }
            model.retain(|_, access| *access != Access::ALL);
            prop_assert_eq!(model, frames(&new));
        }
    }

    #[test]
    fn rules_outside_memory_and_rights_that_no_ept_has_are_refused() {
        let region = Region { start: Gpa(0), end: Gpa(0x8000), kind: RegionKind::Ram, block: None };
        let map = MemoryMap::new(1, vec![region]);
        assert!(check(&rule(0, 0..8, Access::READ), &map).is_ok());
        assert_eq!(check(&rule(0, 7..9, Access::READ), &map).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(check(&rule(0, 0..1, Access::WRITE), &map).unwrap_err().kind(), ErrorKind::Invalid);
        assert!(check(&rule(0, 0..u64::MAX, Access::READ), &map).is_err());
    }
}
