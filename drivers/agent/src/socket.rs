//! A Unix socket as a line: the one place here that names an operating system.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};

use crate::Line;

/// A peer that takes nothing for so long counts as gone.
const PATIENCE: Duration = Duration::from_secs(3);
/// For so long after something was sent its answer is looked for before the reader sleeps: the wake-up of a core that sleeps
/// too costs more than all the rest of a held event.
const SOON: Duration = Duration::from_micros(100);

/// A connection to the socket that an agent listens at, or one that it has accepted.
pub struct Socket {
    stream: UnixStream,
    /// How long a read waits, in nanoseconds, as the kernel was told last.
    waits: AtomicU64,
    born: Instant,
    /// When something was sent last, in nanoseconds since it was born.
    sent: AtomicU64,
}

impl Socket {
    /// Over an open connection.
    ///
    /// # Errors
    /// The kernel does not take its time limits.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, waits: AtomicU64::new(0), born: Instant::now(), sent: AtomicU64::new(0) })
    }

    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// Nobody listens there, or the right to connect is missing.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Self::new(UnixStream::connect(path)?)
    }

    /// Looks for what comes soon after something was sent, without sleeping; `None` where it does not.
    fn look(&self, buf: &mut [u8], timeout: Duration) -> Option<io::Result<usize>> {
        let until = timeout.min(SOON);
        while self.born.elapsed() < Duration::from_nanos(self.sent.load(Ordering::Relaxed)) + until {
            match recv(&self.stream, &mut *buf, RecvFlags::DONTWAIT) {
                Ok((count, _)) => return Some(Ok(count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
                Err(error) => return Some(Err(error.into())),
            }
        }
        None
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Line for Socket {
    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.stream).write_all(bytes)?;
        self.sent.store(nanos(self.born.elapsed()), Ordering::Relaxed);
        Ok(())
    }

    fn receive(&self, buf: &mut [u8], timeout: Duration) -> io::Result<usize> {
        if let Some(came) = self.look(buf, timeout) {
            return came;
        }
        let nanos = nanos(timeout).max(1000);
        // One reader at a time, so this is the value that its read finds.
        if self.waits.swap(nanos, Ordering::Relaxed) != nanos {
            self.stream.set_read_timeout(Some(Duration::from_nanos(nanos)))?;
        }
        (&self.stream).read(buf)
    }

    fn close(&self) {
        // It may be closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
