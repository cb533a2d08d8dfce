//! What the agent offers, as `capabilities` tells it.

use vmtree_agent::{Action as WireAction, Offer, Subject};
use vmtree_api::Missing;
use vmtree_api::events::{Action, EventKind, EventOffer};

use super::words::{action, agent_kind, agent_way};
use crate::said::said;

/// Why no answer names a view.
const ONE_VIEW: &str = "stock QEMU has one view of memory";

/// Why page walks are not seen.
const NO_WALKS: &str =
    "QEMU's plugin interface tells of the accesses that instructions make, and of no page walks";

type Row<T> = (T, Result<(), Missing>);

/// All offers, in the order of the kinds. A kind that the agent says nothing of is not there.
#[must_use]
pub fn offers(rows: &[Offer]) -> Vec<EventOffer> {
    EventKind::ALL.iter().filter_map(|kind| of_kind(*kind, rows)).collect()
}

fn of_kind(event: EventKind, rows: &[Offer]) -> Option<EventOffer> {
    let rows: Vec<&Offer> = rows.iter().filter(|row| row.kind == agent_kind(event)).collect();
    if rows.is_empty() {
        return None;
    }
    let told = |subject: Subject| rows.iter().find(|row| row.subject == subject).map(|row| missing(row));
    let silent = || Err(Missing::new("this agent does not tell of it"));
    let ways = event
        .ways()
        .iter()
        .map(|is| (*is, told(Subject::Seen(agent_way(*is))).unwrap_or_else(silent)))
        .collect();
    let actions: Vec<Row<Action>> = Action::ALL
        .iter()
        .filter_map(|action| {
            let told = match on_the_wire(*action) {
                Some(WireAction::Continue) => Some(Ok(())),
                Some(wire) => told(Subject::Takes(wire)),
                None => Some(Err(Missing::new(ONE_VIEW))),
            };
            Some((*action, told?))
        })
        .collect();
    let gaps = event.parts().iter().map(|part| (*part, Missing::new(NO_WALKS))).collect();
    Some(EventOffer { kind: event, ways, actions, gaps })
}

/// What the agent calls it; it has no views.
fn on_the_wire(wanted: Action) -> Option<WireAction> {
    WireAction::ALL.iter().copied().find(|wire| action(*wire) == wanted)
}

fn missing(row: &Offer) -> Result<(), Missing> {
    match &row.missing {
        None => Ok(()),
        Some(why) => Err(Missing::new(said(why))),
    }
}
