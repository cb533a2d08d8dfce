//! The kernel's table of mounts, as far as vmtree's own mounts go, and how one of them is detached.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

/// The type that /proc/self/mountinfo shows for our mounts.
pub const FSTYPE: &str = "fuse.vmtree";

/// Where the kernel shows this process its mounts (proc(5), /proc/PID/mountinfo).
pub const TABLE: &str = "/proc/self/mountinfo";

/// A mount for as long as it lives: its id and its device number. The kernel gives an id to another mount only
/// after this one is gone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MountId {
    /// The mount id.
    pub id: u32,
    /// `major:minor` of its device.
    pub device: String,
}

impl fmt::Display for MountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.id, self.device)
    }
}

/// One of our mounts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mount {
    /// Which.
    pub id: MountId,
    /// Where.
    pub path: PathBuf,
    /// The SOURCE it shows.
    pub source: String,
}

/// All vmtree mounts that this process can see, in the kernel's order.
///
/// # Errors
/// /proc is not there.
pub fn ours() -> io::Result<Vec<Mount>> {
    let table = fs::read(TABLE)?;
    Ok(table.split(|&byte| byte == b'\n').filter_map(parse_line).collect())
}

/// The vmtree mount at exactly this path.
///
/// # Errors
/// As [`ours`].
pub fn at(path: &Path) -> io::Result<Option<Mount>> {
    Ok(ours()?.into_iter().rfind(|mount| mount.path == path))
}

/// The mount with this id, wherever it now is.
///
/// # Errors
/// As [`ours`].
pub fn find(id: &MountId) -> io::Result<Option<Mount>> {
    Ok(ours()?.into_iter().find(|mount| mount.id == *id))
}

/// A line of mountinfo; `None` for what is not ours.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = text(fields.next()?)?.parse().ok()?;
    let device = text(fields.nth(1)?)?;
    let path = unescape(fields.nth(1)?);
    // Optional fields follow, then a dash, the type, the source.
    fields.find(|field| *field == b"-")?;
    let fstype = fields.next()?;
    let source = fields.next()?;
    if fstype != FSTYPE.as_bytes() {
        return None;
    }
    let source = String::from_utf8_lossy(&unescape(source)).into_owned();
    let path = PathBuf::from(OsString::from_vec(path));
    Some(Mount { id: MountId { id, device }, path, source })
}

fn text(field: &[u8]) -> Option<String> {
    String::from_utf8(field.to_vec()).ok()
}

/// Undoes the kernel's `\ooo` for blanks, tabs, newlines and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| byte == b'\\').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match octal {
            Some(escaped) => {
                out.push(escaped);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

/// Whether the mount's daemon is gone: its files answer ENOTCONN. Asks the mount itself, so not while its
/// daemon may be busy.
#[must_use]
pub fn is_stale(mount: &Mount) -> bool {
    matches!(rustix::fs::stat(&mount.path), Err(Errno::NOTCONN | Errno::CONNABORTED))
}

/// Takes the mount out of the directory tree at once, also while it is in use. `Ok(false)` if it is not there.
///
/// # Errors
/// The right is missing, or another file system is mounted over it.
pub fn detach(id: &MountId) -> io::Result<bool> {
    let Some(mount) = find(id)? else { return Ok(false) };
    // Held by a handle, so that nothing mounted there meanwhile is hit.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = match rustix::fs::open(&mount.path, flags, Mode::empty()) {
        Ok(top) => top,
        // Without allow_other not even root may be let in by a helper's mount; it goes by path then.
        Err(Errno::ACCESS | Errno::PERM) => return by_helper(&mount.path).map(|()| true),
        Err(error) => return Err(error.into()),
    };
    let raw = top.as_raw_fd();
    if mount_id_of(raw)? != id.id {
        let why = format!("another file system is mounted over {}", mount.path.display());
        return Err(io::Error::other(why));
    }
    match rustix::mount::unmount(format!("/proc/self/fd/{raw}"), UnmountFlags::DETACH) {
        Ok(()) => Ok(true),
        Err(Errno::PERM) => {
            // The handle itself keeps fusermount3 from nothing: it detaches lazily.
            drop(top);
            by_helper(&mount.path).map(|()| true)
        }
        Err(error) => Err(error.into()),
    }
}

fn mount_id_of(fd: i32) -> io::Result<u32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
    let line = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    line.and_then(|id| id.trim().parse().ok())
        .ok_or_else(|| io::Error::other("/proc/self/fdinfo tells no mnt_id"))
}

/// Unmounts as a plain user, by the set-uid helper of FUSE.
fn by_helper(path: &Path) -> io::Result<()> {
    let mut helper = Command::new("fusermount3");
    helper.args(["-u", "-z", "--"]).arg(path).stdin(Stdio::null()).stdout(Stdio::null());
    let output = helper.output().map_err(|error| io::Error::other(format!("run fusermount3: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(why.trim().to_owned()))
}

/// The path as the kernel's table writes it, found without asking the mount itself: it may be dead.
///
/// # Errors
/// A parent directory is not there.
pub fn canonical(path: &Path) -> io::Result<PathBuf> {
    let Some(name) = path.file_name() else { return path.canonicalize() };
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().as_bytes().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    };
    let plain = parent.canonicalize()?.join(name);
    if at(&plain)?.is_some() {
        return Ok(plain);
    }
    plain.canonicalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_of_ours_is_read_and_others_are_not() {
        let ours =
            b"87 1 0:45 / /mnt/my\\040vm rw,nosuid,nodev shared:2 - fuse.vmtree emu:ram=1M rw,user_id=0";
        let mount = parse_line(ours).unwrap();
        assert_eq!(mount.id, MountId { id: 87, device: "0:45".to_owned() });
        assert_eq!(mount.path, Path::new("/mnt/my vm"));
        assert_eq!(mount.source, "emu:ram=1M");
        assert_eq!(parse_line(b"22 1 0:20 / /proc rw - proc proc rw"), None);
        assert_eq!(parse_line(b""), None);
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(unescape(b"a\\134b\\9\\"), b"a\\b\\9\\");
    }

    #[test]
    fn detaching_what_is_not_there_changes_nothing() {
        let nowhere = MountId { id: u32::MAX, device: "0:0".to_owned() };
        assert!(!detach(&nowhere).unwrap());
    }

    proptest! {
        #[test]
        fn any_line_is_taken_or_refused(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_line(&line);
            prop_assert!(unescape(&line).len() <= line.len());
        }
    }
}
