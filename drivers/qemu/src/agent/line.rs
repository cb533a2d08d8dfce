//! The socket to an agent.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use vmtree_agent::Line;

/// A connection to the socket that an agent listens at.
pub struct Socket(UnixStream);

impl Socket {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// Nobody listens there, or the right to connect is missing.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        stream.set_write_timeout(Some(Duration::from_secs(3)))?;
        Ok(Self(stream))
    }
}

impl Line for Socket {
    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.0).write_all(bytes)
    }

    fn receive(&self, buf: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buf)
    }

    fn close(&self) {
        // It may be closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}
