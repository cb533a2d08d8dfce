//! How a daemon can be found and its end awaited: it listens on an abstract socket named by its mount, which the
//! kernel takes away with the process. Nothing is ever said on it.

use std::io::{self, Read};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::guardian::mounts::Mark;

/// The pause between two looks at a daemon that has no room for one more watcher.
const LOOK: Duration = Duration::from_millis(20);

/// The sign that a daemon is there; for as long as it is held.
#[derive(Debug)]
pub struct Presence(#[allow(dead_code, reason = "held, never used")] UnixListener);

/// A daemon, watched from outside.
#[derive(Debug)]
pub enum Watched {
    /// By a connection, which ends with it.
    Connected(UnixStream),
    /// By its name: its queue of connections is full, which any user can bring about.
    Crowded(String),
}

/// What a look at a name shows.
enum Seen {
    Nobody,
    Connected(UnixStream),
    Crowded,
}

fn name(mark: &Mark) -> String {
    format!("vmtree-mount-{mark}")
}

/// Shows that this process serves the mount.
///
/// # Errors
/// Another process has taken the name.
pub fn show(mark: &Mark) -> io::Result<Presence> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name(mark))?).map(Presence)
}

/// The daemon of the mount; `None` if it is gone, or lives in another network namespace.
#[must_use]
pub fn watch(mark: &Mark) -> Option<Watched> {
    let name = name(mark);
    match look(&name) {
        Seen::Nobody => None,
        Seen::Connected(stream) => Some(Watched::Connected(stream)),
        Seen::Crowded => Some(Watched::Crowded(name)),
    }
}

/// Connects without ever waiting: a connect(2) that blocks would wait for as long as the queue is full.
fn look(name: &str) -> Seen {
    let connected = SocketAddrUnix::new_abstract_name(name.as_bytes()).and_then(|address| {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &address)?;
        Ok(UnixStream::from(socket))
    });
    match connected {
        Ok(stream) => Seen::Connected(stream),
        Err(Errno::AGAIN) => Seen::Crowded,
        Err(_) => Seen::Nobody,
    }
}

impl Watched {
    /// Waits at most `limit` until the daemon has gone; returns whether it has.
    #[must_use]
    pub fn wait_gone(self, limit: Duration) -> bool {
        match self {
            Self::Connected(stream) => ends(stream, limit),
            Self::Crowded(name) => {
                let begun = Instant::now();
                while !matches!(look(&name), Seen::Nobody) {
                    if begun.elapsed() > limit {
                        return false;
                    }
                    thread::sleep(LOOK);
                }
                true
            }
        }
    }
}

fn ends(mut stream: UnixStream, limit: Duration) -> bool {
    if stream.set_nonblocking(false).is_err() || stream.set_read_timeout(Some(limit)).is_err() {
        return false;
    }
    // Either end closes it or the time is over; nothing is ever sent.
    let result = stream.read_exact(&mut [0]);
    !result.is_err_and(|error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guardian::mounts;

    #[test]
    fn a_daemon_is_seen_while_it_lives() {
        let mark = mounts::nowhere();
        assert!(watch(&mark).is_none());
        let presence = show(&mark).unwrap();
        assert!(!watch(&mark).unwrap().wait_gone(Duration::from_millis(20)));
        let watched = watch(&mark).unwrap();
        drop(presence);
        assert!(watched.wait_gone(Duration::from_secs(5)));
        assert!(watch(&mark).is_none());
    }

    #[test]
    fn a_daemon_whose_queue_somebody_filled_is_seen_and_awaited_all_the_same() {
        let mark = Mark { unique: Some(u64::MAX - 7), ..mounts::nowhere() };
        let address = SocketAddrUnix::new_abstract_name(name(&mark).as_bytes()).unwrap();
        let daemon =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::bind(&daemon, &address).unwrap();
        // The shortest queue there is; a real one is just longer.
        rustix::net::listen(&daemon, 0).unwrap();
        let hog: Vec<Seen> = std::iter::repeat_with(|| look(&name(&mark)))
            .take_while(|seen| matches!(seen, Seen::Connected(_)))
            .collect();
        assert!(!hog.is_empty());
        let watched = watch(&mark).unwrap();
        assert!(matches!(watched, Watched::Crowded(_)));
        assert!(!watched.wait_gone(Duration::from_millis(50)));
        let watched = watch(&mark).unwrap();
        drop(daemon);
        assert!(watched.wait_gone(Duration::from_secs(5)));
    }
}
