//! What is offered of each kind of event, and why not.

use vmtree_api::Missing;
use vmtree_api::events::{Action, EventKind, EventOffer, Way};

use crate::port::kind;

type Row<T> = (T, Result<(), Missing>);

const WRITES: &str = "KVMI tells of writes of this register alone, not of reads";
const WRITTEN_FIRST: &str =
    "KVMI carries the write out and goes on behind it, so nothing can come in its place";
const NO_LENGTH: &str = "KVMI does not tell how long the instruction is, so it can't be skipped";
const ACCESS: &str = "KVMI completes an access or lets the guest try it anew; it can't drop it";
const DATA: &str = "KVMI has no data to give in the place of what is written, and for reads no width";
const EMULATED: &str = "KVMI carries the instruction out itself, on the view that the vCPU has";

/// What this host has.
#[derive(Clone, Debug)]
pub struct Has {
    /// Why a kind of event is not there, by number.
    pub events: Vec<(u8, Result<(), Missing>)>,
    /// Whether single-step is there.
    pub step: Result<(), Missing>,
    /// Whether views are there.
    pub views: Result<(), Missing>,
}

impl Has {
    fn event(&self, number: u8) -> Result<(), Missing> {
        self.events
            .iter()
            .find(|(is, _)| *is == number)
            .map_or_else(|| Err(Missing::new("this driver does not ask for it")), |(_, has)| has.clone())
    }
}

/// The kind of event of KVMI by which a kind is told.
fn number(kind: EventKind) -> Option<u8> {
    Some(match kind {
        EventKind::Cr0 | EventKind::Cr3 | EventKind::Cr4 => kind::CR,
        EventKind::Msr => kind::MSR,
        EventKind::Breakpoint => kind::BREAKPOINT,
        EventKind::Slat => kind::PF,
        EventKind::Cpuid => kind::CPUID,
        EventKind::Descriptor => kind::DESCRIPTOR,
        _ => return None,
    })
}

fn ways(kind: EventKind, has: &Result<(), Missing>) -> Vec<Row<Way>> {
    let writes = matches!(kind, EventKind::Cr0 | EventKind::Cr3 | EventKind::Cr4 | EventKind::Msr);
    let row = |way: &Way| match way {
        Way::From if writes => (*way, Err(Missing::new(WRITES))),
        _ => (*way, has.clone()),
    };
    kind.ways().iter().map(row).collect()
}

fn action(kind: EventKind, action: Action, has: &Has) -> Option<Result<(), Missing>> {
    use EventKind::{Breakpoint, Cpuid, Cr0, Cr3, Cr4, Descriptor, Msr, Slat};
    let no = |why: &str| Some(Err(Missing::new(why)));
    match (action, kind) {
        (Action::Continue | Action::Set, _) => Some(Ok(())),
        (Action::Deny, Cr0 | Cr3 | Cr4 | Msr | Breakpoint) => Some(Ok(())),
        (Action::Deny, Descriptor) => no(NO_LENGTH),
        (Action::Deny, Slat) => no(ACCESS),
        (Action::Deny, Cpuid) => None,
        (Action::Value, Cr0 | Cr3 | Cr4 | Msr | Cpuid) => Some(Ok(())),
        (Action::Value, Slat) => no(DATA),
        (Action::Value, _) => None,
        (Action::Step, Descriptor) => no(EMULATED),
        (Action::Step, Cr0 | Cr3 | Cr4 | Msr) => Some(Ok(())),
        (Action::Step, _) => Some(has.step.clone()),
        (Action::View, _) => Some(has.views.clone()),
        (Action::Inject, Cr0 | Cr3 | Cr4 | Msr) => no(WRITTEN_FIRST),
        (Action::Inject, _) => Some(Ok(())),
        (Action::Deny, _) => None,
    }
}

/// Why KVMI has no such events.
fn absent(kind: EventKind) -> Missing {
    Missing::new(match kind {
        EventKind::SingleStep => {
            "KVM delivers no interrupts to a vCPU that is single-stepped, so watching it would stop the guest's clock"
        }
        EventKind::Xcr0 => "KVMI's event of it tells no values",
        EventKind::Interrupt => "KVMI tells of exceptions that it injected itself, and of no others",
        EventKind::GuestRequest => "KVMI tells of one hypercall of Xen's alone, not of every vmcall",
        _ => "KVMI has no such event",
    })
}

fn of(kind: EventKind, has: &Has) -> EventOffer {
    let Some(number) = number(kind) else {
        let ways = kind.ways().iter().map(|way| (*way, Err(absent(kind)))).collect();
        return EventOffer { kind, ways, actions: Vec::new(), gaps: Vec::new() };
    };
    let there = has.event(number);
    let actions = Action::ALL.iter().filter_map(|is| Some((*is, action(kind, *is, has)?))).collect();
    EventOffer { kind, ways: ways(kind, &there), actions, gaps: Vec::new() }
}

/// All offers, in the order of the kinds.
#[must_use]
pub fn offers(has: &Has) -> Vec<EventOffer> {
    EventKind::ALL.iter().map(|kind| of(*kind, has)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn all() -> Has {
        let kinds = [
            kind::CR,
            kind::MSR,
            kind::BREAKPOINT,
            kind::SINGLESTEP,
            kind::PF,
            kind::CPUID,
            kind::DESCRIPTOR,
        ];
        Has { events: kinds.map(|kind| (kind, Ok(()))).to_vec(), step: Ok(()), views: Ok(()) }
    }

    #[test]
    fn every_kind_of_kvmi_has_a_row_and_every_gap_its_reason() {
        let offers = offers(&all());
        assert_eq!(offers.len(), EventKind::ALL.len());
        assert_eq!(offers.iter().filter(|offer| offer.ways.iter().any(|(_, has)| has.is_ok())).count(), 8);
        for offer in &offers {
            assert_eq!(offer.ways.len(), offer.kind.ways().len());
            assert!(
                offer.actions.is_empty()
                    || offer.actions.iter().any(|(action, has)| *action == Action::Continue && has.is_ok())
            );
        }
    }

    #[test]
    fn a_host_without_single_step_says_so_where_it_is_needed() {
        let mut has = all();
        has.step = Err(Missing::new("AMD"));
        let offers = offers(&has);
        let offer = |kind| offers.iter().find(|offer| offer.kind == kind).unwrap();
        let step = |kind| offer(kind).actions.iter().find(|(is, _)| *is == Action::Step).unwrap().1.is_ok();
        assert!(step(EventKind::Cr3) && !step(EventKind::Slat));
    }
}
