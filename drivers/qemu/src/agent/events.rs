//! The events of a QEMU through its agent.

use std::sync::Arc;
use std::time::Duration;

use vmtree_agent::client::{Client, Failure};
use vmtree_api::events::{EventOffer, EventSource, Held, Verdict, Wanted};
use vmtree_api::{Error, ErrorKind, Result};

use super::{offers, words};

/// The source of events that an agent is. Dropped, it ends the session, and the agent lets go of everything.
pub struct Events {
    client: Arc<Client>,
    offers: Vec<EventOffer>,
}

impl Events {
    pub(super) fn new(client: Arc<Client>) -> Self {
        let offers = offers::offers(&client.hello().offers);
        Self { client, offers }
    }

    /// What the agent calls itself.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.client.hello().name
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.client.close();
    }
}

fn failed(op: &'static str, failure: Failure) -> Error {
    match failure {
        Failure::Refused(refusal) => words::refusal(op, &refusal),
        Failure::Gone(why) => Error::new(ErrorKind::Gone, op, why),
    }
}

fn answer(client: &Client, seq: u64, verdict: &Verdict) -> Result<()> {
    client.answer(seq, &words::verdict(verdict)?).map_err(|failure| failed("answer", failure))
}

impl EventSource for Events {
    fn offers(&self) -> &[EventOffer] {
        &self.offers
    }

    fn watch(&self, wanted: &Wanted) -> Result<()> {
        self.client.watch(&words::wanted(wanted)?).map_err(|failure| failed("watch", failure))
    }

    fn next(&self, timeout: Duration) -> Result<Option<Held>> {
        let next = self.client.next(timeout).map_err(|why| Error::new(ErrorKind::Gone, "take event", why))?;
        let Some(event) = next else { return Ok(None) };
        let told = words::event(&event)?;
        if !event.held() {
            return Ok(Some(Held::told(told)));
        }
        let client = Arc::clone(&self.client);
        Ok(Some(Held::new(told, move |verdict| answer(&client, event.seq, verdict))))
    }
}
