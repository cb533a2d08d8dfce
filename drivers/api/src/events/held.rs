//! The obligation that a held event is.

use std::fmt;

use super::{Event, Verdict};
use crate::{Error, ErrorKind, Result};

/// An event whose vCPU stands still until it is answered. Dropped, it is answered with [`Verdict::Continue`].
#[must_use = "a vCPU stands still until its event is answered"]
pub struct Held {
    event: Event,
    reply: Option<Reply>,
}

type Reply = Box<dyn FnMut(&Verdict) -> Result<()> + Send>;

/// A verdict that was not taken.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub error: Error,
    /// The event, still held; `None` where the VM is gone.
    pub held: Option<Held>,
}

impl Held {
    /// An event that `reply` lets go. Where `reply` fails, the vCPU is still held and another answer may come, unless it
    /// fails with [`ErrorKind::Gone`]. [`Verdict::Continue`] fails in no other way.
    ///
    /// An event of a watch that does not hold is [`Held::told`].
    pub fn new(event: Event, reply: impl FnMut(&Verdict) -> Result<()> + Send + 'static) -> Self {
        Self { event, reply: Some(Box::new(reply)) }
    }

    /// An event that only tells: its vCPU has gone on already, as nobody asked to hold it.
    pub fn told(event: Event) -> Self {
        Self { event, reply: None }
    }

    /// Whether its vCPU waits for an answer.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.reply.is_some()
    }

    /// What happened.
    #[must_use]
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// Lets the vCPU go with this verdict. Prompt: it never waits for the vCPU.
    ///
    /// # Errors
    /// The verdict was not taken: [`ErrorKind::Unsupported`] where the driver has no such action for this event,
    /// [`ErrorKind::Invalid`] and [`ErrorKind::OutOfRange`] for values that the vCPU can't hold,
    /// [`ErrorKind::NotFound`] for a view that is not there. The vCPU is then held as before.
    pub fn answer(mut self, verdict: &Verdict) -> std::result::Result<(), Box<Refused>> {
        let Some(reply) = &mut self.reply else { return Ok(()) };
        match reply(verdict) {
            Ok(()) => {
                self.reply = None;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Gone => {
                self.reply = None;
                Err(Box::new(Refused { error, held: None }))
            }
            Err(error) => Err(Box::new(Refused { error, held: Some(self) })),
        }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&self.event).finish()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(mut reply) = self.reply.take() {
            // A VM that can't be told is gone, and its vCPU with it.
            let _ = reply(&Verdict::Continue);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Detail, EventKind, Move};
    use crate::{VcpuId, ViewId};
    use std::sync::{Arc, Mutex};

    fn event() -> Event {
        let detail = Detail::Control(Move::To { old: 1, new: 2 });
        Event { vcpu: VcpuId(0), view: ViewId(0), kind: EventKind::Cr3, rip: 0, cr3: 1, detail }
    }

    #[test]
    fn a_held_event_is_answered_exactly_once_on_every_path() {
        let answers = Arc::new(Mutex::new(Vec::new()));
        let held = || {
            let answers = answers.clone();
            Held::new(event(), move |verdict| {
                if *verdict == Verdict::Step(None) {
                    return Err(Error::new(ErrorKind::Unsupported, "answer", "no step here"));
                }
                answers.lock().unwrap().push(verdict.clone());
                Ok(())
            })
        };
        drop(held());
        held().answer(&Verdict::Deny).unwrap();
        assert_eq!(*answers.lock().unwrap(), [Verdict::Continue, Verdict::Deny]);
        let refused = held().answer(&Verdict::Step(None)).unwrap_err();
        assert_eq!(refused.error.kind(), ErrorKind::Unsupported);
        refused.held.unwrap().answer(&Verdict::Value(1)).unwrap();
        drop(held().answer(&Verdict::Step(None)));
        assert_eq!(answers.lock().unwrap()[2..], [Verdict::Value(1), Verdict::Continue]);
    }
}
