//! How a daemon can be found and its end awaited: it listens on an abstract socket named by its mount, which the
//! kernel takes away with the process. Nothing is ever said on it.

use std::io::{self, Read};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use crate::guardian::mounts::Mark;

/// The sign that a daemon is there; for as long as it is held.
#[derive(Debug)]
pub struct Presence(#[allow(dead_code, reason = "held, never used")] UnixListener);

/// A daemon, watched from outside.
#[derive(Debug)]
pub struct Watched(UnixStream);

fn address(mark: &Mark) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("vmtree-mount-{mark}"))
}

/// Shows that this process serves the mount.
///
/// # Errors
/// Another process has taken the name.
pub fn show(mark: &Mark) -> io::Result<Presence> {
    UnixListener::bind_addr(&address(mark)?).map(Presence)
}

/// The daemon of the mount; `None` if it is gone, or lives in another network namespace.
#[must_use]
pub fn watch(mark: &Mark) -> Option<Watched> {
    UnixStream::connect_addr(&address(mark).ok()?).ok().map(Watched)
}

impl Watched {
    /// Waits at most `limit` until the daemon has gone; returns whether it has.
    #[must_use]
    pub fn wait_gone(mut self, limit: Duration) -> bool {
        if self.0.set_read_timeout(Some(limit)).is_err() {
            return false;
        }
        // Either end closes it or the time is over; nothing is ever sent.
        let result = self.0.read_exact(&mut [0]);
        !result
            .is_err_and(|error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_seen_while_it_lives() {
        let mark = crate::guardian::mounts::nowhere();
        assert!(watch(&mark).is_none());
        let presence = show(&mark).unwrap();
        assert!(!watch(&mark).unwrap().wait_gone(Duration::from_millis(20)));
        let watched = watch(&mark).unwrap();
        drop(presence);
        assert!(watched.wait_gone(Duration::from_secs(5)));
        assert!(watch(&mark).is_none());
    }
}
