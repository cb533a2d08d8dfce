//! What carries the bytes.

use std::io;
use std::time::Duration;

/// A stream of bytes to one peer, used by one reader and one writer at a time. A socket, or a pipe in memory.
pub trait Line: Send + Sync {
    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// The peer is gone, or does not read for so long that it counts as gone.
    fn send(&self, bytes: &[u8]) -> io::Result<()>;

    /// Reads some bytes; 0 at the end of the stream. Waits for them about as long as `timeout`.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] or [`io::ErrorKind::TimedOut`] where nothing came; any other ends the session.
    fn receive(&self, buf: &mut [u8], timeout: Duration) -> io::Result<usize>;

    /// Ends the stream both ways; a call that waits comes back.
    fn close(&self);
}
