//! The events that wait to be taken.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use vmtree_api::events::Event;

/// The most events that wait without their vCPU being held. Held ones are at most one a vCPU.
pub const LENGTH: usize = 8192;

/// An event, and the serial number of the stop if its vCPU is held.
#[derive(Clone, Copy, Debug)]
pub struct Raised {
    /// The event.
    pub event: Event,
    /// Which stop of its vCPU it is.
    pub serial: Option<u64>,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pushed {
    /// It waits to be taken.
    Yes,
    /// There was no room for it.
    Full,
}

/// What taking came to.
#[derive(Clone, Copy, Debug)]
pub enum Taken {
    /// An event; and whether a vCPU waits for the room that there is now.
    Event(Raised, bool),
    /// None came in time.
    Nothing,
    /// None will come any more.
    Closed,
}

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<Raised>,
    blocked: bool,
    closed: bool,
}

/// The queue, between the machine and the one who takes.
#[derive(Debug, Default)]
pub struct Queue {
    inner: Mutex<Inner>,
    came: Condvar,
}

impl Queue {
    /// Adds an event. One that holds its vCPU always has room.
    pub fn push(&self, event: Event, serial: Option<u64>) -> Pushed {
        let mut inner = self.inner.lock();
        if serial.is_none() && inner.events.len() >= LENGTH {
            inner.blocked = true;
            return Pushed::Full;
        }
        inner.events.push_back(Raised { event, serial });
        drop(inner);
        self.came.notify_one();
        Pushed::Yes
    }

    /// Takes the first event, waiting for one until `timeout` is over.
    pub fn take(&self, timeout: Duration) -> Taken {
        let deadline = Instant::now().checked_add(timeout);
        let mut inner = self.inner.lock();
        loop {
            if let Some(raised) = inner.events.pop_front() {
                // Woken when half is free, the vCPU does not come back for every single place.
                let wake = inner.blocked && inner.events.len() <= LENGTH / 2;
                inner.blocked &= !wake;
                return Taken::Event(raised, wake);
            }
            if inner.closed {
                return Taken::Closed;
            }
            match deadline {
                Some(deadline) => {
                    if self.came.wait_until(&mut inner, deadline).timed_out() && inner.events.is_empty() {
                        return if inner.closed { Taken::Closed } else { Taken::Nothing };
                    }
                }
                None => self.came.wait(&mut inner),
            }
        }
    }

    /// Nothing will come any more.
    pub fn close(&self) {
        self.inner.lock().closed = true;
        self.came.notify_all();
    }
}
