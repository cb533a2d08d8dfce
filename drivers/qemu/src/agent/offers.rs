//! What the agent offers, as `capabilities` tells it.

use vmtree_agent::{Action as WireAction, Offer, Subject};
use vmtree_api::Missing;
use vmtree_api::events::{Action, EventKind, EventOffer};

use super::wanted::{kind, way};

/// Why no answer names a view.
pub const ONE_VIEW: &str = "stock QEMU has one view of memory";

type Row<T> = (T, Result<(), Missing>);

/// All offers, in the order of the kinds. A kind that the agent says nothing of is not there.
#[must_use]
pub fn all(rows: &[Offer]) -> Vec<EventOffer> {
    EventKind::ALL.iter().filter_map(|kind| of_kind(*kind, rows)).collect()
}

fn of_kind(event: EventKind, rows: &[Offer]) -> Option<EventOffer> {
    let rows: Vec<&Offer> = rows.iter().filter(|row| row.kind == kind(event)).collect();
    if rows.is_empty() {
        return None;
    }
    let told = |subject: Subject| rows.iter().find(|row| row.subject == subject).map(|row| missing(row));
    let silent = || Err(Missing::new("this agent does not tell of it"));
    let ways = event.ways().iter().map(|is| (*is, told(Subject::Seen(way(*is))).unwrap_or_else(silent))).collect();
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
    Some(EventOffer { kind: event, ways, actions })
}

fn on_the_wire(action: Action) -> Option<WireAction> {
    Some(match action {
        Action::Continue => WireAction::Continue,
        Action::Deny => WireAction::Deny,
        Action::Value => WireAction::Value,
        Action::Set => WireAction::Set,
        Action::Step => WireAction::Step,
        Action::Inject => WireAction::Inject,
        Action::View => return None,
    })
}

fn missing(row: &Offer) -> Result<(), Missing> {
    match &row.missing {
        None => Ok(()),
        Some(why) => Err(Missing::new(crate::said::said(why))),
    }
}
