//! The owner thread: libkvmi's handles stay on it, and what others want of them are jobs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use vmtree_api::{Error, ErrorKind, Host, Result};

use crate::core::Core;
use crate::port::Wake;
use crate::queue::Queue;

/// How long the thread sleeps at most when nothing happens.
const NAP: Duration = Duration::from_secs(1);
/// After so long without anything the host is asked whether it is still there: half a message, or none, looks like peace.
const QUIET: Duration = Duration::from_secs(5);
/// How long one who waits for news sleeps before it looks again.
const MOMENT: Duration = Duration::from_millis(20);

type Job = Box<dyn FnOnce(&mut Core) + Send>;
/// Makes the core on the owner thread.
pub type Make = Box<dyn FnOnce() -> Result<Core> + Send>;

#[derive(Default)]
struct Shared {
    /// Why the connection ended.
    ended: Mutex<Option<String>>,
    /// Counts what happened.
    news: Mutex<u64>,
    changed: Condvar,
    closing: AtomicBool,
}

/// Who wants something of the owner thread.
#[derive(Clone)]
pub struct Handle {
    jobs: Sender<Job>,
    wake: Arc<dyn Wake>,
    shared: Arc<Shared>,
}

/// The thread. Dropped, it undoes all that was done to the VM, and ends.
pub struct Owner {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Owner {
    /// Starts the thread, on which `make` makes the core; the host is told of the end of the connection.
    ///
    /// # Errors
    /// What `make` fails with, or the host has no thread for it.
    pub fn start(make: Make, wake: Arc<dyn Wake>, queue: Arc<Queue>, host: Arc<dyn Host>) -> Result<Self> {
        const OP: &str = "open kvmi";
        let (jobs, inbox) = channel();
        let handle = Handle { jobs, wake, shared: Arc::default() };
        let shared = Arc::clone(&handle.shared);
        let (ready, started) = sync_channel(1);
        let run = move || match make() {
            Ok(core) => {
                // Nobody waits for it once the opener has given up.
                let _ = ready.send(Ok(()));
                serve(core, &inbox, &shared, &queue, &*host);
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        };
        let thread = thread::Builder::new().name("vmtree-kvmi".to_owned()).spawn(run);
        let thread =
            thread.map_err(|error| Error::new(ErrorKind::Io, OP, "no thread to be had").caused_by(error))?;
        let ended = || Error::new(ErrorKind::Io, OP, "the thread of the connection ended");
        started.recv().unwrap_or_else(|_| Err(ended()))?;
        Ok(Self { handle, thread: Some(thread) })
    }

    /// For those who want something of it.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.handle.shared.closing.store(true, Ordering::Release);
        self.handle.wake.wake();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

/// Tells all who wait of the end, also where the thread dies by a mistake.
struct End<'a> {
    shared: &'a Shared,
    queue: &'a Queue,
    host: &'a dyn Host,
    why: Option<String>,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        let mistake = || "its thread died by a mistake in vmtree; please report it".to_owned();
        let gone = self.why.take().or_else(|| thread::panicking().then(mistake));
        *self.shared.ended.lock() = Some(gone.clone().unwrap_or_else(|| "the VM was closed".to_owned()));
        self.queue.close();
        *self.shared.news.lock() += 1;
        self.shared.changed.notify_all();
        if let Some(why) = gone {
            self.host.ended(&why);
        }
    }
}

fn serve(mut core: Core, inbox: &Receiver<Job>, shared: &Shared, queue: &Queue, host: &dyn Host) {
    let mut end = End { shared, queue, host, why: None };
    let mut last = Instant::now();
    loop {
        let mut busy = false;
        core.intake();
        while let Ok(job) = inbox.try_recv() {
            job(&mut core);
            core.intake();
            busy = true;
        }
        if core.news() {
            *shared.news.lock() += 1;
            shared.changed.notify_all();
            busy = true;
        }
        if busy {
            last = Instant::now();
        } else if last.elapsed() > QUIET {
            last = Instant::now();
            core.ping();
        }
        if let Some(why) = core.gone() {
            end.why = Some(why.to_owned());
            core.leave();
            return;
        }
        if shared.closing.load(Ordering::Acquire) {
            core.leave();
            return;
        }
        if !busy {
            core.port().wait(NAP);
        }
    }
}

impl Handle {
    /// Has something done on the owner thread, and waits for it.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`] once the connection has ended; else what `job` fails with.
    pub fn call<T: Send + 'static>(
        &self,
        op: &'static str,
        job: impl FnOnce(&mut Core) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = sync_channel(1);
        let job = move |core: &mut Core| {
            // One who no longer waits does not need it.
            let _ = reply.send(job(core));
        };
        if self.jobs.send(Box::new(job)).is_err() {
            return Err(self.gone(op));
        }
        self.wake.wake();
        answer.recv().unwrap_or_else(|_| Err(self.gone(op)))
    }

    fn gone(&self, op: &'static str) -> Error {
        let ended = self.shared.ended.lock().clone();
        Error::new(ErrorKind::Gone, op, ended.unwrap_or_else(|| "the connection is gone".to_owned()))
    }

    /// Wakes the owner thread, which then looks around.
    pub fn nudge(&self) {
        self.wake.wake();
    }

    /// Waits until `done` has something, which it looks for whenever something happened, or until `patience` is over.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`], or what `done` fails with.
    pub fn wait<T: Send + 'static>(
        &self,
        op: &'static str,
        patience: Duration,
        done: impl Fn(&mut Core) -> Result<Option<T>> + Send + Sync + Clone + 'static,
    ) -> Result<Option<T>> {
        let deadline = Instant::now() + patience;
        loop {
            let seen = *self.shared.news.lock();
            if let Some(found) = self.call(op, done.clone())? {
                return Ok(Some(found));
            }
            let mut news = self.shared.news.lock();
            if *news == seen {
                let until = deadline.min(Instant::now() + MOMENT);
                let _ = self.shared.changed.wait_until(&mut news, until);
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
        }
    }
}
