//! Events of a VM that can be stopped for an instant, where arming takes that.

use std::time::Duration;

use vmtree_api::events::{EventOffer, EventSource, Held, Wanted};
use vmtree_api::{ErrorKind, Execution, Result};

use super::Events;

/// The events, and the execution of the same VM.
pub struct Armed<E> {
    /// Dropped first: it lets go of what it holds, so that QEMU can be stopped and let go on.
    events: Events,
    execution: E,
}

impl<E: Execution> Armed<E> {
    /// Events of the VM that `execution` stops.
    pub fn new(events: Events, execution: E) -> Self {
        Self { events, execution }
    }
}

impl<E: Execution> EventSource for Armed<E> {
    fn offers(&self) -> &[EventOffer] {
        self.events.offers()
    }

    /// What has to be in QEMU's translation gets there when a vCPU comes by the plugin. One that loops with interrupts off
    /// does not: then the VM is stopped for an instant, after which every vCPU finds it.
    fn watch(&self, wanted: &Wanted) -> Result<()> {
        match self.events.watch(wanted) {
            Err(error) if error.kind() == ErrorKind::TimedOut && !self.events.holds().any() => {
                log::debug!("{error}; the VM is stopped for an instant");
                let pause = self.execution.pause()?;
                let armed = self.events.watch(wanted);
                pause.resume()?;
                armed
            }
            done => done,
        }
    }

    fn next(&self, timeout: Duration) -> Result<Option<Held>> {
        self.events.next(timeout)
    }
}
