//! The events of a domain, as the pump sees them.

use std::sync::{Arc, Weak};
use std::time::Duration;

use vmtree_api::Result;
use vmtree_api::events::{EventOffer, EventSource, Held, Wanted};

use super::queue::{Queue, Raised, Taken};
use crate::error;
use crate::owner::{Owner, ask};

/// The events of a domain.
pub struct Events {
    owner: Arc<Owner>,
    queue: Arc<Queue>,
    offers: Vec<EventOffer>,
}

impl Events {
    /// Of a domain that offers these.
    #[must_use]
    pub fn new(owner: Arc<Owner>, queue: Arc<Queue>, offers: Vec<EventOffer>) -> Self {
        Self { owner, queue, offers }
    }

    fn held(&self, raised: &Raised) -> Held {
        let Raised { event, serial } = *raised;
        let Some(serial) = serial else { return Held::told(event) };
        let owner: Weak<Owner> = Arc::downgrade(&self.owner);
        Held::new(event, move |verdict| {
            const OP: &str = "answer";
            let verdict = verdict.clone();
            ask(&owner, OP, move |world| world.answer(event.vcpu.0, serial, &verdict))
        })
    }
}

impl EventSource for Events {
    fn offers(&self) -> &[EventOffer] {
        &self.offers
    }

    fn watch(&self, wanted: &Wanted) -> Result<()> {
        let wanted = wanted.clone();
        self.owner.ask("watch", move |world| world.watch(&wanted))
    }

    fn next(&self, timeout: Duration) -> Result<Option<Held>> {
        match self.queue.take(timeout) {
            Taken::Event(raised, full) => {
                if full {
                    self.owner.wake();
                }
                Ok(Some(self.held(&raised)))
            }
            Taken::Nothing => Ok(None),
            Taken::Ended => Err(error::gone("next event")),
        }
    }
}
