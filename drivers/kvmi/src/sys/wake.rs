//! What ends the owner thread's sleep: an eventfd beside the socket.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vmtree_api::{Error, ErrorKind, Result};

use crate::port::Wake;

/// An eventfd.
pub struct Doorbell(OwnedFd);

impl Doorbell {
    /// A new one.
    ///
    /// # Errors
    /// The host has no descriptor for it.
    pub fn new() -> Result<Self> {
        let made = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        made.map(Self)
            .map_err(|error| Error::new(ErrorKind::Io, "open kvmi", "no eventfd to be had").caused_by(error))
    }

    /// Sleeps until it rings, `socket` has something, or the time is over.
    pub fn sleep(&self, socket: BorrowedFd<'_>, timeout: std::time::Duration) {
        let mut both = [PollFd::new(&self.0, PollFlags::IN), PollFd::from_borrowed_fd(socket, PollFlags::IN)];
        let timeout = Timespec::try_from(timeout).ok();
        // A failure is as good as a ring: the caller looks around and comes back.
        let _ = poll(&mut both, timeout.as_ref());
        // It counts; reading sets it back, and says so if there was nothing.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl Wake for Doorbell {
    fn wake(&self) {
        // It fails only where it has rung 2^64 times already.
        let _ = rustix::io::write(self.0.as_fd(), &1u64.to_ne_bytes());
    }
}
