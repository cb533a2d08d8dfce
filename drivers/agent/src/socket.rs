//! A Unix socket as a line: the one place here that names an operating system.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::Line;

/// A peer that takes nothing for so long counts as gone.
const PATIENCE: Duration = Duration::from_secs(3);

/// A connection to the socket that an agent listens at, or one that it has accepted.
pub struct Socket {
    stream: UnixStream,
    /// How long a read waits, in nanoseconds, as the kernel was told last.
    waits: AtomicU64,
}

impl Socket {
    /// Over an open connection.
    ///
    /// # Errors
    /// The kernel does not take its time limits.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, waits: AtomicU64::new(0) })
    }

    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// Nobody listens there, or the right to connect is missing.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Self::new(UnixStream::connect(path)?)
    }
}

impl Line for Socket {
    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.stream).write_all(bytes)
    }

    fn receive(&self, buf: &mut [u8], timeout: Duration) -> io::Result<usize> {
        let nanos = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX).max(1000);
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
