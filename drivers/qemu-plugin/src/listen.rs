//! The socket that vmtree connects to.

use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, thread};

use vmtree_agent::server::Agent;
use vmtree_agent::{Line, Socket};

/// A listening socket in the file system.
pub struct Listener {
    socket: UnixListener,
    path: String,
}

impl Listener {
    /// Listens at `path`, for the same user alone. A socket there that nobody listens at is taken over.
    ///
    /// # Errors
    /// A sentence with the cure.
    pub fn bind(path: &str) -> Result<Self, String> {
        let failed = |error: io::Error| {
            format!(
                "can't listen at socket={path}: {error}; name a path in a folder that is there and can be written"
            )
        };
        let socket = match UnixListener::bind(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
                if !is_socket {
                    return Err(format!("socket={path} is there and is no socket: name another path"));
                }
                if UnixStream::connect(path).is_ok() {
                    return Err(format!(
                        "socket={path} is taken by another process that listens there: name another path"
                    ));
                }
                fs::remove_file(path).and_then(|()| UnixListener::bind(path)).map_err(failed)?
            }
            bound => bound.map_err(failed)?,
        };
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self { socket, path: path.to_owned() })
    }

    /// Where it listens.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Serves clients on threads of its own, which inherit the caller's blocked signals.
    pub fn serve(&self, agent: &Arc<Agent>) {
        let writer = agent.clone();
        // A QEMU that can't start a thread has worse to tell.
        let _ = thread::Builder::new().name("vmtree-writer".to_owned()).spawn(move || writer.write_forever());
        let Ok(socket) = self.socket.try_clone() else { return };
        let agent = agent.clone();
        let _ = thread::Builder::new()
            .name("vmtree-agent".to_owned())
            .spawn(move || accept_forever(&socket, &agent));
    }

    /// Takes the socket out of the file system.
    pub fn remove(&self) {
        // One that is gone already is as wanted.
        let _ = fs::remove_file(Path::new(&self.path));
    }
}

fn accept_forever(socket: &UnixListener, agent: &Arc<Agent>) {
    loop {
        let Ok((stream, _)) = socket.accept() else {
            // Out of files, say: not for good.
            thread::sleep(Duration::from_millis(100));
            continue;
        };
        let Ok(line) = Socket::new(stream) else { continue };
        let line: Arc<dyn Line> = Arc::new(line);
        let agent = agent.clone();
        let _ = thread::Builder::new().name("vmtree-client".to_owned()).spawn(move || agent.serve(&line));
    }
}
