//! The kernel's table of mounts, as far as vmtree's own mounts go, and how one of them is detached.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

/// The type that /proc/self/mountinfo shows for our mounts.
pub const FSTYPE: &str = "fuse.vmtree";

/// Where the kernel shows this process its mounts (proc(5), /proc/PID/mountinfo).
pub const TABLE: &str = "/proc/self/mountinfo";

/// A mount for as long as it lives: its id and its device number. Once it is gone, the kernel gives both to the
/// next mount.
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

/// What tells a mount from every other, also from those that come after it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mark {
    /// Which.
    pub id: MountId,
    /// An id that is never given again; `None` before Linux 6.8.
    pub unique: Option<u64>,
    /// Where it was made.
    pub path: PathBuf,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.unique {
            Some(unique) => write!(f, "{unique}"),
            None => self.id.fmt(f),
        }
    }
}

/// Marks a mount that is there now.
#[must_use]
pub fn mark(mount: &Mount) -> Mark {
    let unique = handle(&mount.path).ok().and_then(|top| unique_id(&top));
    Mark { id: mount.id.clone(), unique, path: mount.path.clone() }
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

/// Whether the marked mount is still in the table; asks nothing but the table.
///
/// # Errors
/// As [`ours`].
pub fn is_there(mark: &Mark) -> io::Result<bool> {
    Ok(ours()?.into_iter().any(|mount| mount.id == mark.id && mount.path == mark.path))
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
pub fn detach(mark: &Mark) -> io::Result<bool> {
    if !is_there(mark)? {
        return Ok(false);
    }
    // Held by a handle, so that nothing mounted there meanwhile is hit.
    let top = handle(&mark.path)?;
    if mount_id_of(top.as_raw_fd())? != mark.id.id {
        let why = format!("another file system is mounted over {}", mark.path.display());
        return Err(io::Error::other(why));
    }
    if mark.unique.is_some() && unique_id(&top) != mark.unique {
        return Ok(false);
    }
    match rustix::mount::unmount(format!("/proc/self/fd/{}", top.as_raw_fd()), UnmountFlags::DETACH) {
        Ok(()) => Ok(true),
        Err(Errno::PERM) => by_helper(&mark.path).map(|()| true),
        Err(error) => Err(error.into()),
    }
}

/// A handle on the top of what is mounted at `path`, which asks the file system itself nothing.
fn handle(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// The id that the kernel never gives twice.
fn unique_id(handle: &OwnedFd) -> Option<u64> {
    // STATX_MNT_ID_UNIQUE (statx(2), Linux 6.8), which rustix does not name.
    let wanted = StatxFlags::from_bits_retain(0x4000);
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(handle, "", flags, wanted).ok()?;
    (found.stx_mask & wanted.bits() != 0).then_some(found.stx_mnt_id)
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

/// A mark of no mount.
#[cfg(test)]
pub(crate) fn nowhere() -> Mark {
    let id = MountId { id: u32::MAX, device: format!("0:{}", std::process::id()) };
    Mark { id, unique: None, path: PathBuf::from("/no where") }
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
        assert!(!detach(&nowhere()).unwrap());
    }

    #[test]
    fn the_root_has_an_unique_id_that_stays() {
        let root = handle(Path::new("/")).unwrap();
        assert_eq!(unique_id(&root), unique_id(&handle(Path::new("/")).unwrap()));
    }

    proptest! {
        #[test]
        fn any_line_is_taken_or_refused(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_line(&line);
            prop_assert!(unescape(&line).len() <= line.len());
        }
    }
}
