//! The events of the VM.

use std::sync::Arc;
use std::time::Duration;

use vmtree_api::events::{EventOffer, EventSource, Held, Wanted};
use vmtree_api::{Error, ErrorKind, Result};

use crate::owner::Handle;
use crate::queue::{Queue, Raised, Taken};

/// Where they come from.
pub struct Source {
    handle: Handle,
    queue: Arc<Queue>,
    offers: Vec<EventOffer>,
}

impl Source {
    /// Of this VM.
    #[must_use]
    pub fn new(handle: Handle, queue: Arc<Queue>, offers: Vec<EventOffer>) -> Self {
        Self { handle, queue, offers }
    }

    fn held(&self, (event, serial): Raised) -> Held {
        let Some(serial) = serial else { return Held::told(event) };
        let (handle, index) = (self.handle.clone(), event.vcpu.0 as usize);
        Held::new(event, move |verdict| {
            let verdict = verdict.clone();
            handle.call("answer", move |core| core.answer(index, serial, &verdict))
        })
    }
}

impl EventSource for Source {
    fn offers(&self) -> &[EventOffer] {
        &self.offers
    }

    fn watch(&self, wanted: &Wanted) -> Result<()> {
        let wanted = wanted.clone();
        self.handle.call("watch", move |core| core.watch(&wanted))
    }

    fn next(&self, timeout: Duration) -> Result<Option<Held>> {
        const OP: &str = "next event";
        match self.queue.take(timeout) {
            Taken::Event(raised, room) => {
                if room {
                    self.handle.nudge();
                }
                Ok(Some(self.held(raised)))
            }
            Taken::Nothing => Ok(None),
            Taken::Closed => {
                // It says why.
                self.handle.call(OP, |_| Ok(()))?;
                Err(Error::new(ErrorKind::Gone, OP, "the VM is gone"))
            }
        }
    }
}
