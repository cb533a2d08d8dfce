//! Tests of filters.

use proptest::prelude::*;
use vmtree_api::ViewId;
use vmtree_api::events::Move;

use super::*;
use crate::text::event::tests::any_event;
use crate::text::event_name::tests::any_filter;

fn event(kind: EventKind, detail: Detail) -> Event {
    Event { vcpu: VcpuId(1), view: ViewId(0), kind, rip: 0, cr3: 0, detail }
}

fn slat(access: Access, gpa: u64) -> Event {
    event(EventKind::Slat, Detail::Slat { access, gpa: Gpa(gpa), gva: None, page_walk: false })
}

#[test]
fn each_parameter_selects() {
    let to = event(EventKind::Msr, Detail::Msr { index: 7, access: Move::To { old: 0, new: 1 } });
    let of = || Filter::of(EventKind::Msr);
    for (filter, matches) in [
        (Filter::default(), true),
        (of(), true),
        (Filter::of(EventKind::Cr3), false),
        (Filter { vcpu: Some(VcpuId(1)), ..of() }, true),
        (Filter { vcpu: Some(VcpuId(0)), ..of() }, false),
        (Filter { index: Some(7), ..of() }, true),
        (Filter { index: Some(8), ..of() }, false),
        (Filter { way: Some(Way::To), ..of() }, true),
        (Filter { way: Some(Way::From), ..of() }, false),
    ] {
        assert_eq!(filter.matches(&to), matches, "{filter:?}");
    }
}

#[test]
fn ranges_exclude_their_end_and_accesses_share_a_right() {
    let gpa = Some(Gpa(0x1000)..Gpa(0x3000));
    let filter = Filter { gpa, access: Some(Access::WRITE), ..Filter::of(EventKind::Slat) };
    for (access, gpa, matches) in [
        (Access::WRITE, 0x1000, true),
        (Access::WRITE, 0x2fff, true),
        (Access::WRITE, 0xfff, false),
        (Access::WRITE, 0x3000, false),
        (Access::READ, 0x1000, false),
        (Access::READ.union(Access::WRITE), 0x1000, true),
    ] {
        assert_eq!(filter.matches(&slat(access, gpa)), matches, "{access} {gpa:#x}");
    }
    let other = |gpa, access| Filter { gpa: Some(gpa), access: Some(access), ..Filter::of(EventKind::Slat) };
    assert!(filter.overlaps(&other(Gpa(0x2fff)..Gpa(0x4000), Access::ALL)));
    assert!(!filter.overlaps(&other(Gpa(0x3000)..Gpa(0x4000), Access::ALL)));
    assert!(!filter.overlaps(&other(Gpa(0)..Gpa(0x4000), Access::EXECUTE)));
    // One instruction that reads and writes would match both.
    assert!(filter.overlaps(&other(Gpa(0)..Gpa(0x4000), Access::READ)));
}

proptest! {
    #[test]
    fn two_files_that_match_one_event_overlap(a in any_filter(), b in any_filter(), event in any_event()) {
        prop_assert_eq!(a.overlaps(&b), b.overlaps(&a));
        prop_assert!(a.overlaps(&a) && a.overlaps(&Filter::default()));
        if a.matches(&event) && b.matches(&event) {
            prop_assert!(a.overlaps(&b));
        }
    }

    #[test]
    fn two_filters_of_one_event_overlap(event in any_event(), keep in any::<[bool; 10]>()) {
        let of = |keep: &[bool]| {
            let gpa = match event.detail {
                Detail::Slat { gpa, .. } => gpa.checked_add(1).map(|end| gpa..end),
                _ => None,
            };
            Filter {
                kind: keep[0].then_some(event.kind),
                vcpu: keep[1].then_some(event.vcpu),
                index: index_of(&event.detail).filter(|_| keep[2]),
                way: keep[3].then(|| event.way()),
                gpa: gpa.filter(|_| keep[4]),
                access: None,
            }
        };
        let (a, b) = (of(&keep[..5]), of(&keep[5..]));
        prop_assert!(a.matches(&event) && b.matches(&event) && a.overlaps(&b));
    }
}
