//! SLAT permissions: those that are set, those of event files, and a model that keeps them page by page.

use std::collections::BTreeMap;

use proptest::prelude::*;
use vmtree_api::events::Wanted;
use vmtree_api::views::Rule;
use vmtree_api::{Access, ErrorKind, Gfn, Gpa};

use super::super::intervals::Intervals;
use super::*;
use crate::text::access::{AccessChange, AccessLine};

fn set(from: u64, to: u64, access: Access, deny: bool) -> AccessChange {
    AccessChange::Set { frames: Gfn(from)..Gfn(to), access, deny }
}

fn slat(gpa: Option<std::ops::Range<u64>>, access: Option<Access>) -> Filter {
    let gpa = gpa.map(|range| Gpa(range.start)..Gpa(range.end));
    Filter { gpa, access, ..Filter::of(EventKind::Slat) }
}

fn rule(view: u32, from: u64, to: u64, access: Access, hold: bool) -> Rule {
    Rule { view: ViewId(view), frames: Gfn(from)..Gfn(to), access, hold }
}

fn line(from: u64, to: u64, access: Access, deny: bool, event: bool) -> AccessLine {
    AccessLine { frames: Gfn(from)..Gfn(to), access, deny, event }
}

#[test]
fn rules_are_set_together_or_not_at_all() {
    let mount = mount();
    let read = Access::READ;
    mount.hub.set_access(ViewId(0), &[set(1, 9, read, false), set(3, 4, Access::NONE, true)]).unwrap();
    let lines = [
        line(1, 3, read, false, false),
        line(3, 4, Access::NONE, true, false),
        line(4, 9, read, false, false),
    ];
    assert_eq!(mount.hub.access(ViewId(0)), lines);
    let rules = [rule(0, 1, 3, read, false), rule(0, 3, 4, Access::NONE, true), rule(0, 4, 9, read, false)];
    assert_eq!(mount.mock.wanted().rules, rules);
    let bad = [AccessChange::Reset, set(1, 2, Access::WRITE, false)];
    assert_eq!(errno(mount.hub.set_access(ViewId(0), &bad)), Errno::EINVAL);
    assert_eq!(errno(mount.hub.set_access(ViewId(0), &[set(2, 2, read, false)])), Errno::EINVAL);
    assert!(mount.hub.set_access(ViewId(5), &[AccessChange::Reset]).is_err());
    mount.mock.state().fails = Some(ErrorKind::NotFound);
    assert!(mount.hub.set_access(ViewId(0), &[AccessChange::Reset]).is_err());
    assert_eq!(mount.hub.access(ViewId(0)), lines);
    assert_eq!(mount.mock.wanted().rules, rules);
    mount.mock.state().fails = None;
    mount.hub.set_access(ViewId(0), &[set(0, 4, Access::ALL, true)]).unwrap();
    assert_eq!(mount.hub.access(ViewId(0)), lines[2..]);
    mount.hub.set_access(ViewId(0), &[AccessChange::Reset]).unwrap();
    assert_eq!((mount.hub.access(ViewId(0)), mount.mock.wanted()), (Vec::new(), Wanted::default()));
}

#[test]
fn an_event_file_with_addresses_is_a_rule_on_every_view() {
    let mount = mount();
    let view = mount.hub.make_view().unwrap();
    mount.hub.set_access(view, &[set(1, 2, Access::READ, false)]).unwrap();
    let write = mount.try_open(slat(Some(0x1800..0x2001), Some(Access::WRITE)), Mode::Observe).unwrap();
    let rx = Access::ALL.without(Access::WRITE);
    let expected = [rule(0, 1, 3, rx, false), rule(1, 1, 2, Access::READ, false), rule(1, 2, 3, rx, false)];
    assert_eq!(mount.mock.wanted().rules, expected);
    assert_eq!(mount.hub.access(ViewId(0)), [line(1, 3, rx, false, true)]);
    assert_eq!(mount.stat(EventKind::Slat, "armed"), 3);
    // Whoever traps reads traps writes: no hardware has write without read.
    let read = mount.try_open(slat(Some(0x2000..0x3000), Some(Access::READ)), Mode::Control).unwrap();
    assert_eq!(mount.mock.wanted().rules[1], rule(0, 2, 3, Access::EXECUTE, true));
    drop((write, read));
    assert_eq!(mount.mock.wanted().rules, [rule(1, 1, 2, Access::READ, false)]);
    let any = mount.try_open(slat(Some(0..0x1000), None), Mode::Observe).unwrap();
    assert_eq!(mount.mock.wanted().rules[0], rule(0, 0, 1, Access::NONE, false));
    let later = mount.hub.make_view().unwrap();
    assert_eq!(mount.mock.wanted().rules[3..], [rule(2, 0, 1, Access::NONE, false)]);
    mount.hub.remove_view(later).unwrap();
    mount.hub.remove_view(view).unwrap();
    assert_eq!(mount.mock.wanted().rules, [rule(0, 0, 1, Access::NONE, false)]);
    drop(any);
    assert_eq!(mount.mock.wanted(), Wanted::default());
}

#[test]
fn a_file_without_addresses_is_no_rule_but_may_hold_what_rules_raise() {
    let mount = mount();
    let rx = Access::ALL.without(Access::WRITE);
    let file = mount.try_open(slat(None, Some(Access::EXECUTE)), Mode::Control).unwrap();
    assert_eq!(mount.mock.wanted(), Wanted::default());
    mount.hub.set_access(ViewId(0), &[set(1, 2, rx, false), set(4, 5, Access::READ, false)]).unwrap();
    let expected = [rule(0, 1, 2, rx, false), rule(0, 4, 5, Access::READ, true)];
    assert_eq!(mount.mock.wanted().rules, expected);
    drop(file);
    assert!(mount.mock.wanted().rules.iter().all(|rule| !rule.hold));
    let all = mount.try_open(Filter::default(), Mode::Control).unwrap();
    assert!(mount.mock.wanted().rules.iter().all(|rule| rule.hold));
    drop(all);
}

#[test]
fn a_view_that_can_not_be_made_or_removed_changes_nothing() {
    let mount = mount();
    let file = mount.try_open(slat(Some(0..0x1000), None), Mode::Observe).unwrap();
    mount.mock.state().fails = Some(ErrorKind::Busy);
    assert!(mount.hub.make_view().is_err());
    mount.mock.state().fails = None;
    let view = mount.hub.make_view().unwrap();
    mount.hub.set_access(view, &[set(7, 8, Access::READ, false)]).unwrap();
    mount.mock.state().fails = Some(ErrorKind::Busy);
    assert_eq!(errno(mount.hub.remove_view(view)), Errno::EBUSY);
    mount.mock.state().fails = None;
    assert_eq!(mount.hub.access(view).len(), 2);
    assert_eq!(mount.mock.wanted().rules.iter().filter(|rule| rule.view == view).count(), 2);
    drop(file);
}

fn access() -> impl Strategy<Value = Access> {
    // Those that hardware has.
    prop::sample::select(vec!["---", "r--", "--x", "rw-", "r-x", "rwx"]).prop_map(|text| {
        let rights = [('r', Access::READ), ('w', Access::WRITE), ('x', Access::EXECUTE)];
        let has = rights.into_iter().filter(|(letter, _)| text.contains(*letter));
        has.fold(Access::NONE, |all, (_, right)| all.union(right))
    })
}

fn wanted_access() -> impl Strategy<Value = Option<Access>> {
    prop::option::of(prop::sample::select(vec![
        Access::READ,
        Access::WRITE,
        Access::EXECUTE,
        Access::READ.union(Access::WRITE),
        Access::ALL,
    ]))
}

const PAGES: u64 = 24;

#[derive(Clone, Debug)]
enum Step {
    Set(u64, u64, Access, bool),
    Reset,
    Open(Option<(u64, u64)>, Option<Access>, bool),
    Close(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..PAGES, 1..8u64);
    prop_oneof![
        4 => (range(), access(), any::<bool>()).prop_map(|((at, n), access, deny)| Step::Set(at, at + n, access, deny)),
        1 => Just(Step::Reset),
        4 => (prop::option::weighted(0.8, (0..PAGES * 4096, 1..9 * 4096u64)), wanted_access(), any::<bool>())
            .prop_map(|(gpa, access, control)| Step::Open(gpa.map(|(at, n)| (at, at + n)), access, control)),
        3 => any::<prop::sample::Index>().prop_map(|at| Step::Close(at.index(64))),
    ]
}

/// What a page comes to, by the contract's words.
fn page(set: Option<&(Access, bool)>, files: &[(Filter, bool)], gfn: u64) -> (Access, bool) {
    let (mut access, deny) = set.copied().unwrap_or((Access::ALL, false));
    for (filter, _) in files {
        let Some(gpa) = &filter.gpa else { continue };
        if gpa.start.0 < (gfn + 1) * 4096 && gpa.end.0 > gfn * 4096 {
            access = access.without(filter.access.unwrap_or(Access::ALL));
        }
    }
    if !access.contains(Access::READ) {
        access = access.without(Access::WRITE);
    }
    let hold = deny
        || files.iter().any(|(filter, control)| {
            let here = filter
                .gpa
                .as_ref()
                .is_none_or(|gpa| gpa.start.0 < (gfn + 1) * 4096 && gpa.end.0 > gfn * 4096);
            let raised =
                filter.gpa.is_some() || filter.access.unwrap_or(Access::ALL).without(access) != Access::NONE;
            *control && here && raised
        });
    (access, hold)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn rules_come_to_what_a_model_by_page_says(steps in prop::collection::vec(step(), 1..25)) {
        let mount = mount();
        let mut set = BTreeMap::new();
        let mut open: Vec<(EventFile, Filter, bool)> = Vec::new();
        for step in steps {
            match step {
                Step::Set(from, to, access, deny) => {
                    mount.hub.set_access(ViewId(0), &[super::rules::set(from, to, access, deny)]).unwrap();
                    for gfn in from..to {
                        set.remove(&gfn);
                        if access != Access::ALL {
                            set.insert(gfn, (access, deny));
                        }
                    }
                }
                Step::Reset => {
                    mount.hub.set_access(ViewId(0), &[AccessChange::Reset]).unwrap();
                    set.clear();
                }
                Step::Open(gpa, access, control) => {
                    let filter = slat(gpa.map(|(from, to)| from..to), access);
                    let control = control && !open.iter().any(|(_, other, held)| *held && other.overlaps(&filter));
                    let mode = if control { Mode::Control } else { Mode::Observe };
                    open.push((mount.try_open(filter.clone(), mode).unwrap(), filter, control));
                }
                Step::Close(_) if open.is_empty() => {}
                Step::Close(at) => drop(open.swap_remove(at % open.len())),
            }
            let files: Vec<_> = open.iter().map(|(_, filter, control)| (filter.clone(), *control)).collect();
            let rules = mount.mock.wanted().rules;
            for pair in rules.windows(2) {
                prop_assert!(pair[0].frames.end <= pair[1].frames.start, "{rules:?}");
            }
            for gfn in 0..PAGES + 12 {
                let (access, hold) = page(set.get(&gfn), &files, gfn);
                let found = rules.iter().find(|rule| rule.frames.contains(&Gfn(gfn)));
                let got = found.map_or((Access::ALL, false), |rule| (rule.access, rule.hold));
                // Where all rights are left nothing is raised, held or not.
                prop_assert!(got.0 == access && (got.1 == hold || access == Access::ALL), "{gfn}: {got:?}, not {access} {hold}");
            }
        }
    }

    #[test]
    fn intervals_are_what_a_table_says(changes in prop::collection::vec((0..64u64, 0..20u64, 0..4u8), 0..40)) {
        let mut intervals = Intervals::default();
        let mut table = BTreeMap::<u64, u8>::new();
        for (from, length, value) in changes {
            // Sets, adds to what is there, or takes away.
            let change = |before: Option<u8>| match value {
                0 => None,
                3 => Some(before.unwrap_or(0).wrapping_add(1)),
                other => Some(other),
            };
            intervals.update(from..from + length, change);
            for at in from..from + length {
                match change(table.get(&at).copied()) {
                    Some(value) => table.insert(at, value),
                    None => table.remove(&at),
                };
            }
            for at in 0..90 {
                prop_assert_eq!(intervals.get(at), table.get(&at).copied());
            }
            let ranges: Vec<_> = intervals.iter().collect();
            for pair in ranges.windows(2) {
                let touch = pair[0].0.end == pair[1].0.start && pair[0].1 == pair[1].1;
                prop_assert!(pair[0].0.end <= pair[1].0.start && !touch, "{:?}", ranges);
            }
            prop_assert_eq!(ranges.len(), intervals.len());
        }
    }
}

#[test]
fn a_view_that_gets_the_number_of_one_that_was_removed_gets_its_rules_anew() {
    let mount = mount();
    let gpa = Some(Gpa(0x1000)..Gpa(0x2000));
    let _file = mount.try_open(Filter { gpa, ..Filter::of(EventKind::Slat) }, Mode::Observe).unwrap();
    let view = mount.hub.make_view().unwrap();
    mount.mock.state().deaf = true;
    mount.hub.remove_view(view).unwrap();
    mount.mock.state().deaf = false;
    let told = mount.mock.state().watched.len();
    assert_eq!(mount.hub.make_view().unwrap(), view);
    assert_eq!(mount.mock.state().watched.len(), told + 1, "the driver dropped them with the view");
    assert!(mount.mock.wanted().rules.iter().any(|rule| rule.view == view));
}
