//! Requests that wait for their answer, and the ways their waiting ends: the answer, a signal to the caller, the
//! deadline, the end of the mount.
//!
//! The kernel's FUSE_INTERRUPT never reaches us (fuser 0.18 answers it itself), so a caller that is being killed is
//! found by looking at its pending signals in /proc.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use fuser::{ReplyData, ReplyWrite};
use parking_lot::{Condvar, Mutex};
use vmtree_api::Cancel;

use crate::error::Errno;

/// The shortest and the longest pause between two looks at the callers.
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_millis(150);
/// A look may cost one part in this many of a core.
const SHARE: u32 = 100;
/// How long a caller waits that we can't look at (it lives in another pid namespace).
const UNSEEN: Duration = Duration::from_millis(500);

/// The reply of a request that can wait.
pub enum Reply {
    /// To a read.
    Data(ReplyData),
    /// To a write.
    Write(ReplyWrite),
}

impl Reply {
    /// Answers with an errno.
    pub fn error(self, errno: Errno) {
        let errno = fuser::Errno::from_i32(errno as i32);
        match self {
            Self::Data(reply) => reply.error(errno),
            Self::Write(reply) => reply.error(errno),
        }
    }
}

struct Waiting {
    reply: Reply,
    caller: u32,
    since: Instant,
    cancel: Cancel,
}

#[derive(Default)]
struct State {
    waiting: HashMap<u64, Waiting>,
    next: u64,
    ended: bool,
}

/// The requests that wait.
pub struct Parked {
    state: Mutex<State>,
    more: Condvar,
    deadline: Duration,
}

/// A waiting request, for whoever makes its answer.
pub struct Ticket {
    parked: Arc<Parked>,
    number: u64,
    /// Raised once nobody waits any more.
    pub cancel: Cancel,
}

impl Ticket {
    /// The reply, unless the waiting has ended otherwise.
    pub fn take(self) -> Option<Reply> {
        self.parked.state.lock().waiting.remove(&self.number).map(|waiting| waiting.reply)
    }
}

impl Parked {
    /// A room for requests that wait at most `deadline`.
    pub fn new(deadline: Duration) -> Arc<Self> {
        let parked = Arc::new(Self { state: Mutex::default(), more: Condvar::new(), deadline });
        let watched = Arc::downgrade(&parked);
        let watcher = thread::Builder::new().name("vmtree-signals".to_owned()).spawn(move || watch(&watched));
        if let Err(error) = watcher {
            log::error!("callers that wait can't be interrupted: {error}");
        }
        parked
    }

    /// Parks the reply of a request made by the thread `caller`. None once the mount ends: it is answered then.
    pub fn park(self: &Arc<Self>, caller: u32, reply: Reply) -> Option<Ticket> {
        let cancel = Cancel::default();
        let mut state = self.state.lock();
        if state.ended {
            drop(state);
            reply.error(Errno::ENODEV);
            return None;
        }
        state.next += 1;
        let number = state.next;
        let waiting = Waiting { reply, caller, since: Instant::now(), cancel: cancel.clone() };
        state.waiting.insert(number, waiting);
        self.more.notify_one();
        Some(Ticket { parked: self.clone(), number, cancel })
    }

    /// Answers everybody, and from now on everybody at once.
    pub fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        for (_, waiting) in state.waiting.drain() {
            waiting.cancel.raise();
            waiting.reply.error(Errno::ENODEV);
        }
        self.more.notify_one();
    }

    /// Waits until somebody is parked; false once the mount has ended.
    fn wait_for_callers(&self) -> bool {
        let mut state = self.state.lock();
        if state.waiting.is_empty() && !state.ended {
            self.more.wait_for(&mut state, Duration::from_secs(1));
        }
        !state.ended
    }

    /// Ends the waiting of those who are being killed and of those who waited too long.
    fn look(&self) {
        let callers: Vec<(u64, u32, Duration)> = {
            let state = self.state.lock();
            state.waiting.iter().map(|(number, w)| (*number, w.caller, w.since.elapsed())).collect()
        };
        for (number, caller, waited) in callers {
            let errno = match caller {
                _ if waited >= self.deadline => Errno::ETIMEDOUT,
                0 if waited >= UNSEEN => Errno::EINTR,
                0 => continue,
                _ if signal_pending(caller) => Errno::EINTR,
                _ => continue,
            };
            let waiting = self.state.lock().waiting.remove(&number);
            if let Some(waiting) = waiting {
                waiting.cancel.raise();
                waiting.reply.error(errno);
            }
        }
    }
}

/// Looks at the waiting callers now and then, for as long as there is a mount.
fn watch(parked: &Weak<Parked>) {
    loop {
        let Some(parked) = parked.upgrade() else { return };
        if !parked.wait_for_callers() {
            return;
        }
        let begun = Instant::now();
        parked.look();
        let pause = (begun.elapsed() * SHARE).clamp(SHORTEST, LONGEST);
        drop(parked);
        thread::sleep(pause);
    }
}

/// Whether a thread has a signal that would end its wait: pending, neither blocked nor ignored. A thread that is gone
/// counts.
fn signal_pending(tid: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{tid}/status")) else { return true };
    let mask = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
    };
    (mask("SigPnd:") | mask("ShdPnd:")) & !mask("SigBlk:") & !mask("SigIgn:") != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_gone_counts_as_killed_and_this_one_does_not() {
        assert!(!signal_pending(std::process::id()));
        // Thread numbers are below 2^22 (proc(5), pid_max).
        assert!(signal_pending(1 << 30));
    }
}
