//! The folders of gdbstubs' sockets: each has an owner that holds a lock on it for as long as it lives.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{AtFlags, FlockOperation, OFlags, flock, unlinkat};
use vmtree_api::{Error, ErrorKind, Result};

/// Where they are.
const PLACE: &str = "/tmp";

/// How a folder of ours begins.
const NAME: &str = "vmtree-gdb-";

/// The socket in it.
const SOCKET: &str = "s";

/// A folder for the socket, which nobody else can enter; locked while we live, and removed then.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    lock: File,
}

impl Folder {
    /// A new one, for the QEMU with this process id.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if none can be made.
    pub fn new(pid: u32) -> Result<Self> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let failed = |error: io::Error| {
            let why = "no folder for its socket can be made in /tmp";
            Error::new(ErrorKind::Io, "open QEMU's gdbstub", why).caused_by(error)
        };
        loop {
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            // The path stands in a line of the monitor and in a socket's address: short, and without commas.
            let path = PathBuf::from(format!("{PLACE}/{NAME}{}-{serial}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(failed)?,
            }
            // Until it is locked, a sweep may take it for one that was left.
            let lock = match locked(&path) {
                Ok(Some(lock)) if lock.metadata().map_err(failed)?.nlink() > 0 => lock,
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    // Ours, and empty; where it stays, a sweep takes it.
                    let _ = fs::remove_dir(&path);
                    return Err(failed(error));
                }
            };
            let folder = Self { path, lock };
            folder.give_to(pid);
            return Ok(folder);
        }
    }

    /// QEMU makes the socket, so the folder must be its user's. Where it can't be, QEMU says that it can't.
    fn give_to(&self, pid: u32) {
        let owner = fs::metadata(format!("/proc/{pid}")).map(|process| (process.uid(), process.gid()));
        let mine = self.lock.metadata().map(|folder| (folder.uid(), folder.gid()));
        if let (Ok(owner), Ok(mine)) = (owner, mine)
            && owner.0 != mine.0
        {
            let given = std::os::unix::fs::chown(&self.path, Some(owner.0), Some(owner.1));
            log::debug!("the folder of the gdbstub is given to user {}: {given:?}", owner.0);
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where its socket is, or will be.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path, &self.lock) {
            log::warn!("'{}' can't be removed: {error}", self.path.display());
        }
    }
}

/// Whether a folder is one of ours by name, and was left: it is gone, or its owner is.
#[must_use]
pub fn is_left(folder: &Path) -> bool {
    let ours = folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(NAME));
    let free = || match locked(folder) {
        Ok(lock) => lock.is_some(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    ours && free()
}

/// Removes all folders whose owners were killed, and returns how many. No socket is connected to. A QEMU that still
/// listens in one is known by the folder's name, and its gdbstub is closed at the next use.
pub fn sweep() -> usize {
    sweep_in(Path::new(PLACE))
}

fn sweep_in(place: &Path) -> usize {
    let Ok(entries) = fs::read_dir(place) else { return 0 };
    let ours = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(NAME));
    ours.filter(|entry| {
        // Other users' folders can't be opened, and are theirs to sweep.
        let Ok(Some(lock)) = locked(&entry.path()) else { return false };
        let removed = remove(&entry.path(), &lock);
        log::debug!("a folder that was left, '{}': {removed:?}", entry.path().display());
        removed.is_ok()
    })
    .count()
}

/// Locks a folder; `None` if its owner lives.
fn locked(folder: &Path) -> io::Result<Option<File>> {
    // Anybody may put a link there.
    let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits().cast_signed();
    let lock = File::options().read(true).custom_flags(flags).open(folder)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Removes the socket and the folder, and nothing else that may be in it.
fn remove(path: &Path, folder: &File) -> io::Result<()> {
    let removed = unlinkat(folder, SOCKET, AtFlags::empty());
    if let Err(errno) = removed
        && errno != rustix::io::Errno::NOENT
    {
        return Err(errno.into());
    }
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn only_folders_whose_owner_is_gone_are_swept() {
        let place = tempfile::tempdir().unwrap();
        let made = |name: &str| {
            let path = place.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let (left, held, full) = (made("vmtree-gdb-1-0"), made("vmtree-gdb-1-1"), made("vmtree-gdb-1-2"));
        let (foreign, link) = (made("vmtree-fs-1"), place.path().join("vmtree-gdb-1-3"));
        std::os::unix::fs::symlink(&foreign, &link).unwrap();
        let _socket = UnixListener::bind(left.join(SOCKET)).unwrap();
        let lock = locked(&held).unwrap().unwrap();
        fs::write(full.join("not ours"), "").unwrap();
        assert!(is_left(&left) && !is_left(&held) && !is_left(&foreign));
        assert_eq!(sweep_in(place.path()), 1);
        assert!(!left.exists() && held.exists() && full.exists() && foreign.exists() && link.is_symlink());
        assert!(is_left(&left));
        drop(lock);
        assert_eq!(sweep_in(place.path()), 1);
        assert!(!held.exists());
    }

    #[test]
    fn a_folder_lives_as_long_as_its_owner() {
        let folder = Folder::new(std::process::id()).unwrap();
        let path = folder.path().to_owned();
        sweep();
        assert!(path.is_dir() && !is_left(&path));
        drop(folder);
        assert!(!path.exists());
    }
}
