//! Connecting to a QMP socket.

use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use vmtree_api::{Error, ErrorKind, Result};

use crate::qmp::{GREETING, OP};

/// Connects, waiting no longer than [`GREETING`]: a listener whose queue is full would let connect(2) hang.
///
/// # Errors
/// Those of [`crate::qmp::Qmp::connect`] that come before a greeting.
pub fn dial(path: &Path) -> Result<UnixStream> {
    let at = path.display();
    let address = SocketAddrUnix::new(path).map_err(|error| {
        Error::new(ErrorKind::Invalid, OP, format!("'{at}' can't be the path of a socket")).caused_by(error)
    })?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|error| Error::new(ErrorKind::Io, OP, "no socket to be had").caused_by(error))?;
    set_socket_timeout(&socket, Timeout::Send, Some(GREETING))
        .map_err(|error| Error::new(ErrorKind::Io, OP, "a socket takes no timeout").caused_by(error))?;
    connect(&socket, &address).map_err(|errno| {
        use rustix::io::Errno;
        let (kind, why) = match errno {
            Errno::NOENT => {
                (ErrorKind::NotFound, format!("there is no socket '{at}'; 'vmtree list' shows what runs"))
            }
            Errno::CONNREFUSED => (
                ErrorKind::NotFound,
                format!("nobody listens at '{at}'; its QEMU has ended or it is no socket"),
            ),
            Errno::AGAIN => return held(path),
            Errno::ACCESS | Errno::PERM => {
                (ErrorKind::Denied, format!("connecting to '{at}' is not allowed; become its owner or root"))
            }
            Errno::PROTOTYPE => {
                (ErrorKind::Protocol, format!("'{at}' is no stream socket, so no QMP socket"))
            }
            _ => (ErrorKind::Io, format!("can't connect to '{at}'")),
        };
        Error::new(kind, OP, why).caused_by(errno)
    })?;
    Ok(UnixStream::from(socket))
}

/// The error of a server that has another client.
pub fn held(path: &Path) -> Error {
    let why = format!(
        "the QMP socket '{}' does not greet: another client holds it; \
         give QEMU a second one: -qmp unix:PATH,server=on,wait=off \
         (libvirt: by virsh edit, in <qemu:commandline>; see docs/qemu.md)",
        path.display()
    );
    Error::new(ErrorKind::Busy, OP, why)
}
