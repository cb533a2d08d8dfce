//! The end of the QEMU process, noticed at once and without QMP, by a thread that does other things now and then.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use vmtree_api::{Error, ErrorKind, Host, Result};

const OP: &str = "watch QEMU";

/// A process that can't be mistaken for a later one with the same id.
pub struct Process {
    pid: u32,
    pidfd: OwnedFd,
}

/// Opens the process `pid`.
///
/// # Errors
/// [`ErrorKind::Gone`] if there is none, [`ErrorKind::NotFound`] if `pid` is a thread.
pub fn open(pid: u32) -> Result<Process> {
    let gone = || Error::new(ErrorKind::Gone, OP, format!("QEMU process {pid} has ended"));
    let id = Pid::from_raw(pid.cast_signed()).ok_or_else(gone)?;
    let pidfd = pidfd_open(id, PidfdFlags::empty()).map_err(|errno| match errno {
        Errno::SRCH => gone(),
        Errno::INVAL | Errno::NOENT => {
            Error::new(ErrorKind::NotFound, OP, format!("{pid} is a thread, not a process"))
        }
        _ => Error::new(ErrorKind::Io, OP, format!("process {pid} can't be watched")).caused_by(errno),
    })?;
    Ok(Process { pid, pidfd })
}

/// A thread that waits for the end of a process. Dropped, it stops waiting.
pub struct Watch {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// When `process` ends, sets `ended` and then tells `host`. Until then calls `tick` again and again, after the time
    /// that the last call of it has returned.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if there is no descriptor or thread to be had.
    pub fn start(
        process: Process,
        ended: Arc<AtomicBool>,
        host: Arc<dyn Host>,
        tick: impl FnMut() -> Duration + Send + 'static,
    ) -> Result<Self> {
        let failed =
            |error: std::io::Error| Error::new(ErrorKind::Io, OP, "no watcher to be had").caused_by(error);
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?);
        let wake = Arc::clone(&stop);
        let wait = move || {
            if process_ends(&process.pidfd, &wake, tick) {
                ended.store(true, Ordering::Release);
                host.ended(&format!("QEMU process {} exited", process.pid));
            }
        };
        let thread = thread::Builder::new().name("qemu-watch".to_owned()).spawn(wait).map_err(failed)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

/// Waits until the process has ended, or until `stop` is written to.
fn process_ends(pidfd: &OwnedFd, stop: &OwnedFd, mut tick: impl FnMut() -> Duration) -> bool {
    loop {
        let mut fds = [PollFd::new(pidfd, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        let wait = Timespec::try_from(tick()).ok();
        match poll(&mut fds, wait.as_ref()) {
            Err(Errno::INTR) | Ok(0) => {}
            Err(errno) => {
                log::error!("the end of QEMU will not be noticed: {errno}");
                return false;
            }
            Ok(_) => {
                let [process, stop] = fds.map(|fd| !fd.revents().is_empty());
                if process || stop {
                    return process;
                }
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // An eventfd takes 8 bytes; it is full only after 2^64 - 2 of these.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        let Some(thread) = self.thread.take() else { return };
        // A host that drops the driver inside `ended` does so on the watcher's own thread.
        if thread.thread().id() != thread::current().id() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::sync::mpsc;

    struct Tell(mpsc::Sender<String>);

    impl Host for Tell {
        fn ended(&self, why: &str) {
            let _ = self.0.send(why.to_owned());
        }
    }

    #[test]
    fn the_end_is_told_and_dropping_ends_the_wait() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let (sender, told) = mpsc::channel();
        let ended = Arc::new(AtomicBool::new(false));
        let host = Arc::new(Tell(sender));
        let watch = |ended: &Arc<AtomicBool>| {
            let tick = || Duration::from_millis(1);
            Watch::start(open(child.id()).unwrap(), ended.clone(), host.clone(), tick).unwrap()
        };
        drop(watch(&ended));
        assert!(!ended.load(Ordering::Acquire) && told.try_recv().is_err());
        let watch = watch(&ended);
        child.kill().unwrap();
        let why = told.recv_timeout(Duration::from_secs(5)).unwrap();
        assert!(ended.load(Ordering::Acquire));
        assert_eq!(why, format!("QEMU process {} exited", child.id()));
        child.wait().unwrap();
        drop(watch);
        assert_eq!(open(child.id()).err().map(|error| error.kind()), Some(ErrorKind::Gone));
    }
}
