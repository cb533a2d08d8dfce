//! The table of verdicts.

use proptest::prelude::*;
use vmtree_api::events::{Inject, Verdict};
use vmtree_api::x86::Reg;
use vmtree_api::{Gva, RegValue, Result, ViewId};

use super::table::*;
use crate::events::wire::{Cause, control};

fn facts(views: bool, moved: bool) -> Facts {
    Facts { views, moved, writes: true, fetches: false, user: false, view: ViewId(0) }
}

fn causes() -> impl Strategy<Value = Cause> {
    let number = any::<u64>;
    prop_oneof![
        (number(), number(), number(), 1_u32..64).prop_map(|(gfn, offset, gla, flags)| Cause::Access {
            gfn,
            offset,
            gla,
            flags
        }),
        (0_u32..5, number(), number()).prop_map(|(index, new, old)| Cause::Control { index, new, old }),
        (any::<u32>(), number(), number()).prop_map(|(index, new, old)| Cause::Msr { index, new, old }),
        Just(Cause::Breakpoint { gfn: 1, kind: 6, length: 1 }),
        Just(Cause::Step),
        Just(Cause::GuestRequest),
        Just(Cause::Cpuid { length: 2, leaf: 7, subleaf: 0 }),
        (0_u8..6, any::<bool>()).prop_map(|(table, write)| Cause::Descriptor { table, write }),
        Just(Cause::Unemulated),
        (any::<u16>(), any::<bool>(), any::<bool>()).prop_map(|(port, input, string)| Cause::Io {
            port,
            bytes: 1,
            input,
            string
        }),
    ]
}

proptest! {
    #[test]
    fn going_on_never_fails(cause in causes(), views: bool, moved: bool) {
        let plan = plan(&cause, &Verdict::Continue, facts(views, moved)).unwrap();
        prop_assert!(plan.inject.is_none() && plan.changes.is_empty() && plan.view.is_none());
    }

    #[test]
    fn where_rip_was_set_nothing_of_the_old_instruction_is_done(cause in causes(), views: bool) {
        let plan = plan(&cause, &Verdict::Continue, facts(views, true)).unwrap();
        prop_assert!(matches!(plan.act, Act::Again | Act::Drop | Act::Done));
        prop_assert!(plan_value(&cause, 0).is_err());
    }

    #[test]
    fn any_value_is_taken_or_refused(cause in causes(), value: u128) {
        let _ = plan(&cause, &Verdict::Value(value), facts(true, false));
    }
}

fn plan_value(cause: &Cause, value: u128) -> Result<Plan> {
    plan(cause, &Verdict::Value(value), facts(true, true))
}

#[test]
fn what_xen_does_whatever_the_answer_is_put_back() {
    let xcr0 = Cause::Control { index: control::XCR0, new: 7, old: 3 };
    let back = (Reg::Xcr0.id(), RegValue::Word(3));
    let fault = Verdict::Inject(Inject::PageFault { address: Gva(1), error: 2 });
    for verdict in [Verdict::Deny, fault, Verdict::Set(vec![(Reg::Rip.id(), RegValue::Word(9))])] {
        let plan = plan(&xcr0, &verdict, facts(true, false)).unwrap();
        assert_eq!(plan.changes.first(), Some(&back), "{verdict:?}");
    }
    let other = plan(&xcr0, &Verdict::Value(1), facts(true, false)).unwrap();
    assert_eq!(other.changes, [(Reg::Xcr0.id(), RegValue::Word(1))]);
}

#[test]
fn walls_fault_where_a_write_would_be_dropped() {
    let access = Cause::Access { gfn: 5, offset: 0, gla: 0x5000, flags: 1 };
    let read = Facts { writes: false, user: true, ..facts(true, false) };
    let denied = plan(&access, &Verdict::Deny, read).unwrap();
    assert_eq!(denied.inject, Some(Inject::PageFault { address: Gva(0x5000), error: 5 }));
    let fetch = Facts { writes: false, fetches: true, ..facts(true, false) };
    let denied = plan(&access, &Verdict::Deny, fetch).unwrap();
    assert_eq!(denied.inject, Some(Inject::PageFault { address: Gva(0x5000), error: 17 }));
    assert_eq!(plan(&access, &Verdict::Deny, facts(true, false)).unwrap().act, Act::EmulateDry);
    assert_eq!(plan(&access, &Verdict::Continue, facts(false, false)).unwrap().act, Act::Emulate);
}

#[test]
fn a_step_on_another_view_is_done_where_memory_matters() {
    let int3 = Cause::Breakpoint { gfn: 1, kind: 6, length: 1 };
    let step = |view| plan(&int3, &Verdict::Step(view), facts(true, false)).unwrap().act;
    assert_eq!(step(Some(ViewId(2))), Act::Step(Stage::On(ViewId(2))));
    assert_eq!((step(None), step(Some(ViewId(0)))), (Act::Deliver, Act::Deliver));
    let cpuid = Cause::Cpuid { length: 2, leaf: 0, subleaf: 0 };
    let act = plan(&cpuid, &Verdict::Step(Some(ViewId(2))), facts(true, false)).unwrap().act;
    assert_eq!(act, Act::Past);
}
