//! The socket that QEMU connects to, and the first half of its handshake.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmtree_api::{Error, ErrorKind, Result};

use crate::hello;
use crate::options::Options;

const OP: &str = "open kvmi";

/// How long whoever connects may take for a part of the handshake.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long nothing is said of the waiting.
const QUIET: Duration = Duration::from_secs(2);

/// A socket at a path, which goes with it.
struct Listening {
    socket: UnixListener,
    path: PathBuf,
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Somebody else may have taken it away.
        let _ = fs::remove_file(&self.path);
    }
}

fn failed(path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        _ => ErrorKind::Io,
    };
    let why = format!("no socket can be made at '{}'; name one in a folder that is there", path.display());
    Error::new(kind, OP, why).caused_by(error)
}

/// Takes a socket away that nobody listens at.
fn clear(path: &Path) -> Result<()> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    let at = path.display();
    if !found.file_type().is_socket() {
        let why = format!("'{at}' is there and is no socket; name another path");
        return Err(Error::new(ErrorKind::Busy, OP, why));
    }
    if UnixStream::connect(path).is_ok() {
        let why = format!("somebody listens at '{at}' already; unmount that one, or name another path");
        return Err(Error::new(ErrorKind::Busy, OP, why));
    }
    fs::remove_file(path).map_err(|error| failed(path, error))
}

fn listen(options: &Options) -> Result<Listening> {
    clear(&options.path)?;
    let socket = UnixListener::bind(&options.path).map_err(|error| failed(&options.path, error))?;
    let listening = Listening { socket, path: options.path.clone() };
    let rights = fs::Permissions::from_mode(options.mode);
    fs::set_permissions(&options.path, rights).map_err(|error| failed(&options.path, error))?;
    Ok(listening)
}

/// The next one who connects, until the deadline.
fn next(listening: &Listening, deadline: Instant, patience: Duration) -> io::Result<Option<UnixStream>> {
    let left = deadline.saturating_duration_since(Instant::now()).min(patience);
    let mut one = [PollFd::new(&listening.socket, PollFlags::IN)];
    match poll(&mut one, Timespec::try_from(left).ok().as_ref()) {
        Ok(0) | Err(rustix::io::Errno::INTR) => Ok(None),
        Ok(_) => listening.socket.accept().map(|(socket, _)| Some(socket)),
        Err(error) => Err(error.into()),
    }
}

/// What it says first.
fn greeting(socket: &mut UnixStream) -> Result<Vec<u8>> {
    let lost = |error: io::Error| {
        Error::new(ErrorKind::Protocol, OP, "whoever connected did not say a handshake in time")
            .caused_by(error)
    };
    socket.set_read_timeout(Some(PATIENCE)).map_err(lost)?;
    socket.set_write_timeout(Some(PATIENCE)).map_err(lost)?;
    let mut first = [0; 4];
    socket.read_exact(&mut first).map_err(lost)?;
    let mut all = vec![0; hello::size(first)?];
    if let Some((size, rest)) = all.split_first_chunk_mut() {
        *size = first;
        socket.read_exact(rest).map_err(lost)?;
    }
    Ok(all)
}

/// Waits until QEMU connects, and returns its socket with what it said first. Who does not speak as QEMU does is sent away.
///
/// # Errors
/// [`ErrorKind::TimedOut`], with what QEMU has to be started with; or no socket can be made.
pub fn meet(options: &Options) -> Result<(UnixStream, Vec<u8>)> {
    let listening = listen(options)?;
    let begun = Instant::now();
    let deadline = begun + options.wait;
    let (mut told, mut last) = (false, None);
    while Instant::now() < deadline {
        let patience = if told { options.wait } else { QUIET };
        match next(&listening, deadline, patience).map_err(|error| failed(&options.path, error))? {
            Some(mut socket) => match greeting(&mut socket) {
                Ok(hello) => return Ok((socket, hello)),
                Err(error) => {
                    log::warn!("{error}");
                    last = Some(error);
                }
            },
            None if !told && begun.elapsed() >= QUIET => {
                log::warn!(
                    "waiting for QEMU at {}; start it with {}",
                    options.path.display(),
                    options.qemu()
                );
                told = true;
            }
            None => {}
        }
    }
    let wait = options.wait.as_secs();
    let why = format!(
        "no QEMU connected within {wait} s (wait=SECONDS); start one that has KVM-VMI with {}",
        options.qemu()
    );
    let error = Error::new(ErrorKind::TimedOut, OP, why);
    Err(match last {
        Some(last) => error.caused_by(last),
        None => error,
    })
}
