//! The events that wait to be taken.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use vmtree_api::events::Event;

/// The most events that wait without their vCPU standing. Held ones are at most one a vCPU.
pub const LENGTH: usize = 8192;

/// An event, and the number of the stop if its vCPU is held.
pub type Raised = (Event, Option<u64>);

/// What taking came to.
#[derive(Clone, Copy, Debug)]
pub enum Taken {
    /// An event; and whether there is room again.
    Event(Raised, bool),
    /// None came in time.
    Nothing,
    /// None will come any more.
    Closed,
}

#[derive(Default)]
struct Inner {
    events: VecDeque<Raised>,
    full: bool,
    closed: bool,
}

/// The queue, between the owner thread and the one who takes.
#[derive(Default)]
pub struct Queue {
    inner: Mutex<Inner>,
    came: Condvar,
}

impl Queue {
    /// Adds an event, and returns whether there was room. One that holds its vCPU always has it.
    pub fn push(&self, event: Event, serial: Option<u64>) -> bool {
        let mut inner = self.inner.lock();
        if serial.is_none() && inner.events.len() >= LENGTH {
            inner.full = true;
            return false;
        }
        inner.events.push_back((event, serial));
        drop(inner);
        self.came.notify_one();
        true
    }

    /// Takes the first event, waiting for one until `timeout` is over.
    pub fn take(&self, timeout: Duration) -> Taken {
        let deadline = Instant::now().checked_add(timeout);
        let mut inner = self.inner.lock();
        loop {
            if let Some(raised) = inner.events.pop_front() {
                let room = inner.full && inner.events.len() <= LENGTH / 2;
                inner.full &= !room;
                return Taken::Event(raised, room);
            }
            if inner.closed {
                return Taken::Closed;
            }
            match deadline {
                Some(deadline) if self.came.wait_until(&mut inner, deadline).timed_out() => {
                    if inner.events.is_empty() && !inner.closed {
                        return Taken::Nothing;
                    }
                }
                Some(_) => {}
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
