//! What an agent says that it can do, as vmtree says it.

use vmtree_agent::{Offer, Subject};
use vmtree_api::Missing;
use vmtree_api::events::{Action, EventKind, EventOffer};

use super::words;

/// The agent's rows, a row a kind. An action that the agent doesn't speak of is not there for that kind.
pub fn offers(rows: &[Offer]) -> Vec<EventOffer> {
    let known = EventKind::ALL.iter().filter(|kind| rows.iter().any(|row| words::kind(row.kind) == **kind));
    known.map(|kind| offer(*kind, rows)).collect()
}

fn offer(kind: EventKind, rows: &[Offer]) -> EventOffer {
    let mut offer = EventOffer { kind, ways: Vec::new(), actions: Vec::new() };
    for row in rows.iter().filter(|row| words::kind(row.kind) == kind) {
        let there = row.missing.as_ref().map_or(Ok(()), |why| Err(Missing::new(why.clone())));
        match row.subject {
            Subject::Seen(way) => offer.ways.push((words::way(way), there)),
            Subject::Takes(action) => offer.actions.push((words::action(action), there)),
        }
    }
    let one_view = Missing::new("stock QEMU has one view of memory");
    let after_step =
        offer.actions.iter().position(|(action, _)| *action == Action::Step).map_or(0, |at| at + 1);
    offer.actions.insert(after_step, (Action::View, Err(one_view)));
    offer
}
