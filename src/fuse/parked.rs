//! Requests that wait for their answer, and the ways their waiting ends: the answer, a signal to the caller, the
//! deadline, the end of the mount.
//!
//! The kernel's FUSE_INTERRUPT never reaches us (fuser 0.18 answers it itself), so a caller that is being killed is
//! found by looking at its pending signals in /proc.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use fuser::{ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite};
use parking_lot::{Condvar, Mutex};
use vmtree_api::{Cancel, Error, ErrorKind};

use crate::error::{Errno, FsError};
use crate::tree::{Caller, Place};

/// The shortest and the longest pause between two looks at the callers.
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_millis(150);
/// A look may cost one part in this many of a core, as far as LONGEST lets it.
const SHARE: u32 = 150;
/// How long a reader waits that we can't look at (it lives in another pid namespace): after EINTR it ends if it has a
/// signal, and else reads again. A writer would write again, and have done twice what it wrote once, so it waits for the
/// deadline.
const UNSEEN: Duration = Duration::from_millis(500);

/// How many callers' status files are kept open at most: a process may have 1024 files by default.
const MOST_KEPT: usize = 256;

/// The reply of a request that can wait.
pub enum Reply {
    /// To a read.
    Data(ReplyData),
    /// To a read of an event file: it waits as long as it takes, and the end of the mount is the end of the file.
    Event(ReplyData),
    /// To a write.
    Write(ReplyWrite),
    /// To an open.
    Open(ReplyOpen),
    /// To a mkdir.
    Entry(ReplyEntry),
    /// To a rmdir.
    Empty(ReplyEmpty),
}

impl Reply {
    /// Answers with an errno.
    pub fn error(self, errno: Errno) {
        let errno = fuser::Errno::from_i32(errno as i32);
        match self {
            Self::Data(reply) | Self::Event(reply) => reply.error(errno),
            Self::Write(reply) => reply.error(errno),
            Self::Open(reply) => reply.error(errno),
            Self::Entry(reply) => reply.error(errno),
            Self::Empty(reply) => reply.error(errno),
        }
    }

    /// Answers because the mount has ended, with the VM (`gone`) or without it.
    fn ended(self, gone: bool) {
        match self {
            Self::Event(reply) if !gone => reply.data(&[]),
            reply => reply.error(Errno::ENODEV),
        }
    }
}

/// A request that waits.
pub struct Waiting {
    /// Where its answer goes.
    pub reply: Reply,
    caller: Caller,
    place: Place,
    since: Instant,
    cancel: Cancel,
    /// Its thread's status in /proc, opened at the first look: reading it again takes half the time.
    status: Option<Arc<File>>,
}

#[derive(Default)]
struct State {
    waiting: HashMap<u64, Waiting>,
    /// That the mount has ended, and whether the VM is gone.
    ended: Option<bool>,
}

/// Takes note of a request that ended without the answer it waited for.
type Note = dyn Fn(Caller, Place, &FsError) + Send + Sync;

/// The requests that wait.
pub struct Parked {
    state: Mutex<State>,
    next: AtomicU64,
    more: Condvar,
    deadline: Duration,
    note: Box<Note>,
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
        self.claim().map(|waiting| waiting.reply)
    }

    /// Takes the request out, so that nobody else answers it meanwhile; `None` where its waiting has ended.
    pub fn claim(&self) -> Option<Waiting> {
        self.parked.state.lock().waiting.remove(&self.number)
    }

    /// Puts a claimed request back, to wait on.
    pub fn put_back(&self, waiting: Waiting) {
        self.parked.insert(self.number, waiting);
    }
}

impl Parked {
    /// A room for requests that wait at most `deadline`; `note` is told of those that waited in vain.
    pub fn new(
        deadline: Duration,
        note: impl Fn(Caller, Place, &FsError) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let (state, next, more) = Default::default();
        let parked = Arc::new(Self { state, next, more, deadline, note: Box::new(note) });
        let watched = Arc::downgrade(&parked);
        let watcher = thread::Builder::new().name("vmtree-signals".to_owned()).spawn(move || watch(&watched));
        if let Err(error) = watcher {
            log::error!("callers that wait can't be interrupted: {error}");
        }
        parked
    }

    /// Parks the reply of a request to `place`. None once the mount ends: it is answered then.
    pub fn park(self: &Arc<Self>, caller: Caller, place: Place, reply: Reply) -> Option<Ticket> {
        let cancel = Cancel::default();
        let waiting =
            Waiting { reply, caller, place, since: Instant::now(), cancel: cancel.clone(), status: None };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let parked = self.insert(number, waiting);
        parked.then(|| Ticket { parked: self.clone(), number, cancel })
    }

    /// Has a request wait, or answers it if the mount has ended; returns whether it waits.
    fn insert(&self, number: u64, waiting: Waiting) -> bool {
        let mut state = self.state.lock();
        if let Some(gone) = state.ended {
            drop(state);
            waiting.cancel.raise();
            waiting.reply.ended(gone);
            return false;
        }
        state.waiting.insert(number, waiting);
        self.more.notify_one();
        true
    }

    /// Answers everybody, and from now on everybody at once; `gone` where the VM is.
    pub fn end(&self, gone: bool) {
        let mut state = self.state.lock();
        let gone = *state.ended.get_or_insert(gone);
        for (_, waiting) in state.waiting.drain() {
            waiting.cancel.raise();
            waiting.reply.ended(gone);
        }
        self.more.notify_one();
    }

    /// Waits until somebody is parked; false once the mount has ended.
    fn wait_for_callers(&self) -> bool {
        let mut state = self.state.lock();
        if state.waiting.is_empty() && state.ended.is_none() {
            self.more.wait_for(&mut state, Duration::from_secs(1));
        }
        state.ended.is_none()
    }

    /// Ends the waiting of those who are being killed and of those who waited too long.
    fn look(&self) {
        let callers: Vec<Seen> = self.state.lock().waiting.iter().map(Seen::new).collect();
        let mut kept = callers.iter().filter(|seen| seen.status.is_some()).count();
        for seen in callers {
            let errno = match seen.caller.pid {
                _ if !seen.endless && seen.waited >= self.deadline => Errno::ETIMEDOUT,
                0 if seen.reads && seen.waited >= UNSEEN => Errno::EINTR,
                0 => continue,
                pid if self.signalled(pid, &seen, &mut kept) => Errno::EINTR,
                _ => continue,
            };
            let waiting = self.state.lock().waiting.remove(&seen.number);
            if let Some(waiting) = waiting {
                waiting.cancel.raise();
                if errno == Errno::ETIMEDOUT {
                    (self.note)(waiting.caller, waiting.place, &self.too_late());
                }
                waiting.reply.error(errno);
            }
        }
    }

    /// Whether the caller, a thread of this number, has a signal that ends its waiting.
    fn signalled(&self, tid: u32, seen: &Seen, kept: &mut usize) -> bool {
        if let Some(status) = &seen.status {
            return pending(status).is_none_or(|pending| pending);
        }
        let status = match File::open(format!("/proc/{tid}/status")) {
            Ok(status) => status,
            // Anything else, as no more descriptors, tells nothing of the caller.
            Err(error) => return error.kind() == std::io::ErrorKind::NotFound,
        };
        let ends = pending(&status).is_none_or(|pending| pending);
        if *kept < MOST_KEPT
            && let Some(waiting) = self.state.lock().waiting.get_mut(&seen.number)
        {
            waiting.status = Some(Arc::new(status));
            *kept += 1;
        }
        ends
    }

    fn too_late(&self) -> FsError {
        let why =
            format!("no answer within {} s; reply_timeout= sets the limit", self.deadline.as_secs_f64());
        Error::new(ErrorKind::TimedOut, "wait", why).into()
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

/// What a look sees of a request.
struct Seen {
    number: u64,
    caller: Caller,
    waited: Duration,
    /// Whether it has no deadline.
    endless: bool,
    /// Whether it can be made again without harm.
    reads: bool,
    status: Option<Arc<File>>,
}

impl Seen {
    fn new((number, waiting): (&u64, &Waiting)) -> Self {
        let endless = matches!(waiting.reply, Reply::Event(_));
        Self {
            number: *number,
            caller: waiting.caller,
            waited: waiting.since.elapsed(),
            endless,
            reads: endless || matches!(waiting.reply, Reply::Data(_)),
            status: waiting.status.clone(),
        }
    }
}

/// Whether a thread has a signal that would end its wait: pending, neither blocked nor ignored. `None` where the thread is
/// gone.
fn pending(status: &File) -> Option<bool> {
    let mut buf = [0; 4096];
    let got = status.read_at(&mut buf, 0).ok().filter(|got| *got > 0)?;
    let text = buf.get(..got)?;
    let mask = |key: &[u8]| {
        let line = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(key))?;
        u64::from_str_radix(std::str::from_utf8(line).ok()?.trim(), 16).ok()
    };
    let [thread, process, blocked, ignored] =
        [b"SigPnd:", b"ShdPnd:", b"SigBlk:", b"SigIgn:"].map(|key| mask(key).unwrap_or(0));
    Some((thread | process) & !blocked & !ignored != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_gone_has_no_status_and_this_one_has_no_signal() {
        let me = File::open("/proc/self/status").unwrap();
        assert_eq!(pending(&me), Some(false));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let status = File::open(format!("/proc/{}/status", child.id())).unwrap();
        child.wait().unwrap();
        assert_eq!(pending(&status), None);
    }
}
