//! What tells a parked reader to look again.

/// Something to call when there may be more to read.
pub trait Wake: Send {
    /// Called once, from any thread, with no lock of the hub held.
    fn wake(self: Box<Self>);

    /// Whether anybody still waits for it. One that is not wanted is dropped sooner or later without a call.
    fn wanted(&self) -> bool {
        true
    }
}

impl<F: FnOnce() + Send> Wake for F {
    fn wake(self: Box<Self>) {
        self();
    }
}

/// What tells a parked reader to look again. A boxed closure is one.
pub type Waker = Box<dyn Wake>;

/// How many reads are kept before the first look for those that nobody waits for.
const PURGE: usize = 16;

/// Those who wait for one open file.
#[derive(Default)]
pub struct Wakers {
    reads: Vec<Waker>,
    /// An open file has one poll at most: the kernel's handle is the same for all who poll it.
    poll: Option<Waker>,
    purge_at: usize,
}

impl Wakers {
    /// Keeps a parked read.
    pub fn read(&mut self, waker: Waker) {
        if self.reads.len() >= self.purge_at.max(PURGE) {
            self.reads.retain(|waker| waker.wanted());
            self.purge_at = self.reads.len() * 2;
        }
        self.reads.push(waker);
    }

    /// Keeps a poll, in place of the one before.
    pub fn poll(&mut self, waker: Waker) {
        self.poll = Some(waker);
    }

    /// Hands over all of them.
    pub fn take(&mut self, into: &mut Vec<Waker>) {
        into.append(&mut self.reads);
        into.extend(self.poll.take());
    }
}

/// Who waits, and how.
pub enum Wait {
    /// A parked read.
    Read(Waker),
    /// A poll.
    Poll(Waker),
}

impl Wakers {
    /// Keeps one.
    pub fn keep(&mut self, wait: Wait) {
        match wait {
            Wait::Read(waker) => self.read(waker),
            Wait::Poll(waker) => self.poll(waker),
        }
    }
}

/// Calls them.
pub fn wake(wakers: Vec<Waker>) {
    for waker in wakers {
        waker.wake();
    }
}
