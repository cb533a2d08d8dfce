//! What is offered of each kind: all ways, and every action that the contract has for it.

use vmtree_api::events::{Action, EventKind, EventOffer};

/// The actions that make sense for a kind.
fn actions(kind: EventKind) -> Vec<Action> {
    use EventKind::*;
    let deny = !matches!(kind, SingleStep | Cpuid);
    let value = !matches!(kind, SingleStep | Interrupt | Breakpoint | Descriptor);
    let makes_sense = |action: &Action| match action {
        Action::Deny => deny,
        Action::Value => value,
        _ => true,
    };
    Action::ALL.iter().copied().filter(makes_sense).collect()
}

/// All offers, in the order of the kinds.
pub fn all() -> Vec<EventOffer> {
    let offer = |kind: &EventKind| EventOffer {
        kind: *kind,
        ways: kind.ways().iter().map(|way| (*way, Ok(()))).collect(),
        actions: actions(*kind).into_iter().map(|action| (action, Ok(()))).collect(),
        gaps: Vec::new(),
    };
    EventKind::ALL.iter().map(offer).collect()
}
