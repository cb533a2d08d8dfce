//! What ends a mount: a signal, the VM's end, an unmount from outside. All come in by one channel.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vmtree_api::Host;

use crate::guardian::mounts::{self, Mark};

/// Signals often come in pairs: SIGTERM with SIGHUP, or one from the terminal and one from the shell.
const GRACE: Duration = Duration::from_secs(1);

/// Why a mount ends.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum End {
    /// The process was asked to.
    Signal(i32),
    /// The VM is gone, with the driver's reason.
    Gone(String),
    /// Somebody else unmounted it.
    Unmounted,
    /// The caller did not wait for the mount.
    Abandoned,
    /// What it was made for is done.
    Over,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Gone(why) => write!(f, "the VM is gone: {why}"),
            Self::Unmounted => f.write_str("unmounted from outside"),
            Self::Abandoned => f.write_str("the caller went away before the mount answered"),
            Self::Over => f.write_str("done"),
        }
    }
}

/// The channel of ends.
#[derive(Debug)]
pub struct Ends {
    sender: Sender<End>,
    receiver: Receiver<End>,
}

/// The end of the VM, as a driver tells it.
struct Told(Sender<End>);

impl Host for Told {
    fn ended(&self, why: &str) {
        // Fails only when the mount has ended already.
        let _ = self.0.send(End::Gone(why.to_owned()));
    }
}

impl Default for Ends {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel();
        Self { sender, receiver }
    }
}

impl Ends {
    /// What a driver tells the VM's end to.
    #[must_use]
    pub fn host(&self) -> impl Host + 'static {
        Told(self.sender.clone())
    }

    /// Where anyone can tell an end.
    #[must_use]
    pub fn sender(&self) -> Sender<End> {
        self.sender.clone()
    }

    /// From here on SIGTERM, SIGINT and SIGHUP are ends.
    ///
    /// # Errors
    /// No thread could be made.
    pub fn watch_signals(&self) -> io::Result<()> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        let sender = self.sender.clone();
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for signal in signals.forever() {
                if sender.send(End::Signal(signal)).is_err() {
                    return;
                }
            }
        })?;
        Ok(())
    }

    /// From here on it is an end when this mount leaves the kernel's table, also by a lazy unmount, which lets the
    /// session live on for as long as a process works in it.
    ///
    /// # Errors
    /// No thread could be made, or /proc is not there.
    pub fn watch_mount(&self, mark: Mark) -> io::Result<()> {
        let table = File::open(mounts::TABLE)?;
        let sender = self.sender.clone();
        thread::Builder::new().name("mounts".to_owned()).spawn(move || {
            while !matches!(mounts::is_there(&mark), Ok(false)) {
                // The kernel reports each change of the table as an exceptional condition (proc(5)).
                let mut fds = [PollFd::new(&table, PollFlags::PRI)];
                if rustix::event::poll(&mut fds, None).is_err() {
                    thread::sleep(Duration::from_millis(200));
                }
            }
            let _ = sender.send(End::Unmounted);
        })?;
        Ok(())
    }

    /// Waits for the first end.
    #[must_use]
    pub fn wait(&self) -> End {
        // It can't fail: a sender lives in self.
        self.receiver.recv().unwrap_or(End::Unmounted)
    }

    /// Waits at most `limit` until `work` is done on a thread of its own, or less if a further signal shows
    /// impatience: one that comes `GRACE` after the first. Returns whether it was done.
    pub fn finish(&self, limit: Duration, work: impl FnOnce() + Send + 'static) -> bool {
        let (sender, done) = mpsc::channel();
        let spawned = thread::Builder::new().name("release".to_owned()).spawn(move || {
            work();
            let _ = sender.send(());
        });
        if spawned.is_err() {
            return false;
        }
        let start = Instant::now();
        while start.elapsed() < limit {
            match done.recv_timeout(Duration::from_millis(20)) {
                Ok(()) => return true,
                Err(mpsc::RecvTimeoutError::Disconnected) => return false,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            let impatient = self.receiver.try_iter().any(|end| matches!(end, End::Signal(_)));
            if impatient && start.elapsed() > GRACE {
                return false;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_counts() {
        let ends = Ends::default();
        ends.host().ended("killed");
        ends.host().ended("again");
        assert_eq!(ends.wait(), End::Gone("killed".to_owned()));
    }

    #[test]
    fn a_mount_that_is_not_there_has_ended() {
        let ends = Ends::default();
        ends.watch_mount(mounts::nowhere()).unwrap();
        assert_eq!(ends.wait(), End::Unmounted);
    }

    #[test]
    fn work_that_hangs_is_left_after_the_limit_or_by_a_signal() {
        let ends = Ends::default();
        let hang = || thread::sleep(Duration::from_secs(60));
        assert!(ends.finish(Duration::from_secs(10), || {}));
        assert!(!ends.finish(Duration::from_millis(40), hang));
        let sender = ends.sender();
        sender.send(End::Signal(15)).unwrap();
        thread::spawn(move || {
            thread::sleep(GRACE + Duration::from_millis(100));
            sender.send(End::Signal(15)).unwrap();
        });
        let start = Instant::now();
        assert!(!ends.finish(Duration::from_secs(30), hang));
        assert!(start.elapsed() > GRACE && start.elapsed() < Duration::from_secs(20));
    }
}
