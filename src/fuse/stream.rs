//! Reading an event file: reads that wait, poll, and the wake-up that serves both.
//!
//! At most one waker of a stream is registered with the hub. It is called by the thread that publishes, and answers the
//! reads that wait right there. Whoever starts to wait first says so (in `readers` or `poller`) and then looks whether a
//! waker is registered; the waker first says that it is no more, and then looks who waits. So one of both sees the other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{PollEvents, PollNotifier, ReplyData};
use parking_lot::Mutex;

use super::parked::{Parked, Reply, Ticket};
use crate::error::FsResult;
use crate::events::{EventFile, Taken};
use crate::tree::{Caller, Place};

/// An open event file.
pub struct Stream {
    file: EventFile,
    /// Whether it controls: answers may be written to it.
    control: bool,
    readers: Mutex<VecDeque<Reader>>,
    poller: Mutex<Option<PollNotifier>>,
    /// Whether a waker is registered.
    armed: AtomicBool,
}

/// A read that waits.
struct Reader {
    ticket: Ticket,
    size: usize,
}

impl Stream {
    /// The stream of an event file.
    pub fn new(file: EventFile, control: bool) -> Arc<Self> {
        let (readers, poller, armed) = Default::default();
        Arc::new(Self { file, control, readers, poller, armed })
    }

    /// Serves a read: at once if there is something, or if `wait` is not wanted; else once there is.
    pub fn read(
        self: &Arc<Self>,
        parked: &Arc<Parked>,
        (caller, place): (Caller, Place),
        size: usize,
        wait: bool,
        reply: ReplyData,
    ) {
        match self.file.read(size) {
            Taken::Wait if wait => {}
            taken => {
                match taken {
                    Taken::Wait => reply.error(fuser::Errno::EAGAIN),
                    taken => answer(Reply::Event(reply), taken),
                }
                // Who polls is told of what comes after this.
                return self.pump();
            }
        }
        let Some(ticket) = parked.park(caller, place, Reply::Event(reply)) else { return };
        {
            let mut readers = self.readers.lock();
            // Those whose waiting ended otherwise.
            readers.retain(|reader| !reader.ticket.cancel.raised());
            readers.push_back(Reader { ticket, size });
        }
        self.pump();
    }

    /// Takes answers to held events.
    pub fn write(&self, data: &[u8]) -> FsResult<()> {
        self.file.write(data)
    }

    /// What of `events` is there now; with a notifier, that is called once more is.
    pub fn poll(self: &Arc<Self>, events: PollEvents, notifier: Option<PollNotifier>) -> PollEvents {
        let writable =
            if self.control { PollEvents::POLLOUT | PollEvents::POLLWRNORM } else { PollEvents::empty() };
        if let Some(notifier) = notifier {
            // Kept also where there is something now: who waits for edges asks once, reads, and waits for the next.
            *self.poller.lock() = Some(notifier);
        }
        let readable = self.file.readable(None) || self.arm_for_poll();
        let mut there = events & writable;
        if readable {
            there |= events & (PollEvents::POLLIN | PollEvents::POLLRDNORM);
        }
        if self.file.ended() {
            there |= PollEvents::POLLHUP;
        }
        there
    }

    /// Sees to it that who polls is told, if somebody does; returns whether there is something after all.
    fn arm_for_poll(self: &Arc<Self>) -> bool {
        let readable = self.poller.lock().is_some() && self.arm();
        if readable {
            // A reader may have counted on the waker that is not there now.
            self.pump();
        }
        readable
    }

    /// Lets go of what the file holds.
    pub fn let_go(&self) {
        self.file.let_go();
    }

    /// Lets go of what the file holds, and ends what it armed. May wait for a hypervisor.
    pub fn close(&self) {
        self.file.close();
    }

    /// Sees to it that a waker is registered as long as somebody waits, and serves those who can be served.
    fn pump(self: &Arc<Self>) {
        loop {
            let readers = self.serve();
            if !readers && self.poller.lock().is_none() || !self.arm() {
                return;
            }
            // There is something already.
            self.tell_poller();
            if !readers && self.readers.lock().is_empty() {
                return;
            }
        }
    }

    /// Answers the reads that wait for as long as there is something; returns whether one still waits.
    fn serve(&self) -> bool {
        loop {
            let Some(reader) = self.readers.lock().pop_front() else { return false };
            // Claimed first: what is read for a caller that is being killed would be lost.
            let Some(waiting) = reader.ticket.claim() else { continue };
            match self.file.read(reader.size) {
                Taken::Wait => {
                    reader.ticket.put_back(waiting);
                    self.readers.lock().push_front(reader);
                    return true;
                }
                taken => answer(waiting.reply, taken),
            }
        }
    }

    /// Registers a waker if none is; returns whether there is something to read already.
    fn arm(self: &Arc<Self>) -> bool {
        if self.armed.swap(true, Ordering::SeqCst) {
            return false;
        }
        let stream = Arc::downgrade(self);
        let readable = self.file.readable(Some(Box::new(move || {
            if let Some(stream) = stream.upgrade() {
                stream.armed.store(false, Ordering::SeqCst);
                stream.tell_poller();
                stream.pump();
            }
        })));
        if readable {
            self.armed.store(false, Ordering::SeqCst);
        }
        readable
    }

    fn tell_poller(&self) {
        if let Some(notifier) = self.poller.lock().take() {
            // It fails once the mount has ended, which wakes everybody.
            let _ = notifier.notify();
        }
    }
}

fn answer(reply: Reply, taken: Taken) {
    match (reply, taken) {
        (Reply::Event(reply), Taken::Data(data)) => reply.data(&data),
        (Reply::Event(reply), _) => reply.data(&[]),
        (reply, _) => reply.error(crate::error::Errno::EIO),
    }
}
