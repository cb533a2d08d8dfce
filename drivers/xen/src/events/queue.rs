//! What was raised, on its way from the owner thread to the pump.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use vmtree_api::events::Event;

/// An event, and the number to answer it by where its vCPU waits.
#[derive(Clone, Copy, Debug)]
pub struct Raised {
    /// What happened.
    pub event: Event,
    /// `None` where the vCPU has gone on.
    pub serial: Option<u64>,
}

/// What a wait came to.
pub enum Taken {
    /// An event, and whether there is room again.
    Event(Raised, bool),
    /// The time is over.
    Nothing,
    /// The domain is gone.
    Ended,
}

#[derive(Default)]
struct State {
    raised: VecDeque<Raised>,
    ended: bool,
}

/// The queue. It is let grow to [`Queue::MOST`]; then vCPUs wait for room.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    more: Condvar,
}

impl Queue {
    /// How many events wait at most.
    pub const MOST: usize = 4096;

    /// Whether another one may come.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.state.lock().raised.len() < Self::MOST
    }

    /// Adds one.
    pub fn push(&self, raised: Raised) {
        self.state.lock().raised.push_back(raised);
        self.more.notify_one();
    }

    /// No more will come; what is there can still be taken.
    pub fn end(&self) {
        self.state.lock().ended = true;
        self.more.notify_all();
    }

    /// The next one.
    #[must_use]
    pub fn take(&self, timeout: Duration) -> Taken {
        let deadline = Instant::now().checked_add(timeout);
        let mut state = self.state.lock();
        loop {
            let full = state.raised.len() >= Self::MOST;
            if let Some(raised) = state.raised.pop_front() {
                return Taken::Event(raised, full);
            }
            if state.ended {
                return Taken::Ended;
            }
            match deadline {
                Some(deadline) if self.more.wait_until(&mut state, deadline).timed_out() => {
                    if state.raised.is_empty() {
                        return if state.ended { Taken::Ended } else { Taken::Nothing };
                    }
                }
                Some(_) => {}
                None => self.more.wait(&mut state),
            }
        }
    }
}
