//! Crate kvmi gets its VM. Its `init` waits without an end for whoever connects to its socket, opens that to all users, and must not
//! see a second one. So its socket is in a folder of ours, we are the one who connects, and once `init` is done, the
//! descriptor that libkvmi holds becomes QEMU's socket.

use std::fs;
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kvmi::{KVMIntrospectable, KVMi, SocketType, create_kvmi};
use rustix::net::SocketAddrUnix;
use vmtree_api::{Error, ErrorKind, Result};

use super::call;
use super::link::Link;
use super::meet::PATIENCE;
use super::wake::Doorbell;
use crate::handles;

const OP: &str = "open kvmi";
/// GET_VERSION, and the most that is its answer.
const VERSION: u16 = 2;
const MOST: usize = 4096;

fn io_error(why: &str, error: io::Error) -> Error {
    Error::new(ErrorKind::Io, OP, why.to_owned()).caused_by(error)
}

/// A folder that only we can enter, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vmtree-kvmi-{}-{number}", std::process::id()));
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| io_error("no folder can be made for libkvmi's socket", error))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left there is an empty folder or a dead socket.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Connects to libkvmi once its socket is there.
fn reach(path: &Path) -> io::Result<UnixStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(path) {
            Ok(socket) => {
                socket.set_read_timeout(Some(PATIENCE))?;
                return Ok(socket);
            }
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// An answer to GET_VERSION: header, no error, version 1, no features.
fn plain_version(request: &[u8; 8]) -> Vec<u8> {
    let [id0, id1, _, _, seq @ ..] = *request;
    let [size0, size1] = 24u16.to_ne_bytes();
    let header = [[id0, id1, size0, size1], seq].concat();
    [header, vec![0; 8], 1u32.to_ne_bytes().to_vec(), vec![0; 12]].concat()
}

/// QEMU's answer to GET_VERSION, which it is asked for by `request`.
fn version(guest: &mut UnixStream, intro: &[u8], request: &[u8; 8]) -> io::Result<Vec<u8>> {
    guest.write_all(intro)?;
    guest.write_all(request)?;
    let mut header = [0; 8];
    guest.read_exact(&mut header)?;
    let [id0, id1, size0, size1, ..] = header;
    let size = usize::from(u16::from_ne_bytes([size0, size1]));
    let same_seq = header.get(4..) == request.get(4..);
    if u16::from_ne_bytes([id0, id1]) != VERSION || !same_seq || !(16..=MOST).contains(&size) {
        return Err(io::Error::other("the first answer is not that to GET_VERSION"));
    }
    let mut all = header.to_vec();
    all.resize(8 + size, 0);
    if let Some(rest) = all.get_mut(8..) {
        guest.read_exact(rest)?;
    }
    Ok(all)
}

/// Passes the handshake on, between QEMU and libkvmi. Whatever QEMU does, libkvmi gets an answer, so that `init` ends. The socket to
/// libkvmi is returned: it must stay open until QEMU's is in its place.
fn pass_on(path: &Path, guest: &mut UnixStream, hello: &[u8]) -> io::Result<(UnixStream, io::Result<()>)> {
    let mut own = reach(path)?;
    own.write_all(hello)?;
    let mut first = [0; 4];
    own.read_exact(&mut first)?;
    let mut intro = first.to_vec();
    intro.resize((u32::from_ne_bytes(first) as usize).clamp(4, MOST), 0);
    if let Some(rest) = intro.get_mut(4..) {
        own.read_exact(rest)?;
    }
    let mut request = [0; 8];
    own.read_exact(&mut request)?;
    let answer = version(guest, &intro, &request);
    own.write_all(answer.as_ref().unwrap_or(&plain_version(&request)))?;
    Ok((own, answer.map(drop)))
}

/// Runs crate kvmi's `init` and the handshake beside it.
fn init(
    kvmi: &mut KVMi,
    path: &Path,
    guest: &mut UnixStream,
    hello: &[u8],
) -> Result<(UnixStream, io::Result<()>)> {
    let socket = SocketType::UnixSocket(path.display().to_string());
    thread::scope(|scope| {
        let other = scope.spawn(|| pass_on(path, guest, hello));
        let begun = kvmi.init(socket);
        let passed =
            other.join().unwrap_or_else(|_| Err(io::Error::other("the thread of the handshake ended")));
        begun.map_err(|error| io_error("libkvmi does not start", error))?;
        passed.map_err(|error| io_error("libkvmi does not answer", error))
    })
}

/// Makes QEMU's socket the one that libkvmi has: `fd` is libkvmi's descriptor, of a connection at `path`.
fn put_in_place(guest: &UnixStream, fd: i32, path: &Path) -> io::Result<()> {
    // SAFETY: libkvmi owns this descriptor for as long as its domain is open, which it is; it is not closed here.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut theirs = ManuallyDrop::new(owned);
    let name = SocketAddrUnix::try_from(rustix::net::getsockname(&*theirs)?)?;
    if name.path().is_none_or(|name| name.to_bytes() != path.as_os_str().as_bytes()) {
        return Err(io::Error::other("libkvmi's descriptor is of something else"));
    }
    rustix::io::dup3(guest, &mut theirs, rustix::io::DupFlags::CLOEXEC)?;
    Ok(())
}

/// Makes the connection.
///
/// # Errors
/// libkvmi is not to be had, or QEMU broke off.
pub fn join(mut guest: UnixStream, hello: &[u8], bell: Arc<Doorbell>) -> Result<Link> {
    let load = |error: Box<dyn std::error::Error>| {
        let why = format!("libkvmi.so is not to be had ({error}); 'vmtree doctor' says more");
        Error::new(ErrorKind::Unsupported, OP, why)
    };
    // Never dropped as it is: its Drop takes the domain for the context. `Link` closes both, each as what it is.
    let mut kvmi = ManuallyDrop::new(create_kvmi().map_err(load)?);
    let folder = Folder::new()?;
    let path = folder.0.join("socket");
    let (own, passed) = init(&mut kvmi, &path, &mut guest, hello)?;
    let Some((ctx, dom)) = handles::of(&format!("{:?}", *kvmi)) else {
        return Err(Error::new(ErrorKind::Io, OP, "libkvmi has made no connection"));
    };
    let handles = call::Handles::new(ctx, dom);
    let placed = passed.and_then(|()| {
        guest.set_nonblocking(true)?;
        put_in_place(&guest, handles.fd(), &path)
    });
    drop(own);
    let link = Link::new(kvmi, handles, guest, bell);
    match placed {
        Ok(()) => Ok(link),
        Err(error) => {
            let why = "QEMU broke off in the handshake; is its KVM introspectable, and by nobody else?";
            Err(Error::new(ErrorKind::Protocol, OP, why).caused_by(error))
        }
    }
}
