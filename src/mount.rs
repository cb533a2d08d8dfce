//! One mount from its beginning to its orderly end: driver, guardians, tree, session.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use vmtree_api::{Driver, Error, ErrorKind, Result};

use crate::daemon::ends::{End, Ends};
use crate::daemon::{self, presence};
use crate::fuse::Waiting;
use crate::guardian::connection;
use crate::guardian::journal::Journal;
use crate::guardian::keep::{Guardians, Log};
use crate::guardian::mounts::{self, Mark, Mount};
use crate::guardian::notes::Noting;
use crate::text::options;
use crate::tree::Tree;
use crate::{drivers, fuse};

const OP: &str = "mount";
/// How long giving back what the mount holds may take before it is left to the guardians.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to mount, and where.
#[derive(Clone, Debug)]
pub struct Request {
    /// The VM.
    pub source: String,
    /// The directory, as the user wrote it.
    pub mountpoint: PathBuf,
    /// The `-o` lists.
    pub options: Vec<String>,
    /// Where the guardians log to.
    pub log: Log,
}

/// Mounts, calls `ready` once the mount answers, and serves until the end comes, which `ready` may order by an error.
/// All is given back and the mountpoint is free when this returns; then the process must exit by
/// [`std::process::exit`], because the session's own destructor would unmount by path.
///
/// # Errors
/// Nothing is mounted, paused or armed then.
pub fn serve(request: &Request, ready: impl FnOnce(&Path) -> std::result::Result<(), End>) -> Result<End> {
    let options = options::parse(request.options.iter().map(String::as_str))?;
    let mountpoint = check(&request.mountpoint)?;
    let ends = Ends::default();
    let journal = Arc::new(Journal::create().map_err(|error| io_error("undo journal", error))?);
    let guardians = Guardians::start(journal.clone(), request.log)
        .map_err(|error| io_error("start the guardian process", error))?;
    let driver = match open(request, &ends, journal.clone()) {
        Ok(driver) => driver,
        Err(error) => {
            guardians.finish();
            return Err(error);
        }
    };
    let tree = Tree::new(driver, request.source.clone(), options, fuse::monotonic);
    // Nothing of ours keeps the caller's directory busy.
    if let Err(error) = std::env::set_current_dir("/") {
        log::warn!("chdir /: {error}");
    }
    let attached = attach(&tree, &mountpoint, &ends, &journal);
    let mark = journal.read_mounted().ok().flatten();
    let session = attached.as_ref().ok().cloned().zip(mark);
    let result = attached.map(|waiting| {
        let end = ready(&mountpoint).err().unwrap_or_else(|| ends.wait());
        waiting.release(matches!(end, End::Gone(_)));
        end
    });
    if let Ok(end) = &result {
        let level = if matches!(end, End::Gone(_)) { log::Level::Warn } else { log::Level::Info };
        log::log!(level, "{}: {end}", mountpoint.display());
    }
    let gone = matches!(result, Ok(End::Gone(_)));
    finish(tree, &ends, guardians, gone);
    if let Some((waiting, mark)) = session {
        end_session(&waiting, &mark);
    }
    result
}

/// Has no thread wait in the kernel for an answer of ours: it would outlive the process, and keep it.
fn end_session(waiting: &Waiting, mark: &Mark) {
    if waiting.quiet() {
        return;
    }
    log::warn!("a read is not answered; ending the connection");
    match connection::abort(&mark.id.device) {
        Ok(()) if waiting.quiet() => {}
        Ok(()) => log::error!("the connection does not end"),
        Err(error) => log::error!("the connection can't be ended: {error}"),
    }
}

/// Gives back all that the mount holds, then has it detached.
fn finish(tree: Arc<Tree>, ends: &Ends, guardians: Guardians, gone: bool) {
    if !ends.finish(PATIENCE, move || tree.release(gone)) {
        log::warn!("the VM's manager does not answer; leaving");
    }
    guardians.finish();
}

/// Opens the driver, which notes in the journal what would have to be undone.
fn open(request: &Request, ends: &Ends, journal: Arc<Journal>) -> Result<Arc<dyn Driver>> {
    let host = Noting::new(ends.host(), &request.source, journal)
        .map_err(|error| io_error("undo journal, or the current directory", error))?;
    Ok(Arc::from(drivers::open(&request.source, Arc::new(host))?))
}

/// Makes the mount and sees to it that its end is noticed.
fn attach(tree: &Arc<Tree>, mountpoint: &Path, ends: &Ends, journal: &Journal) -> Result<Waiting> {
    let here = || mountpoint.display().to_string();
    ends.watch_signals().map_err(|error| io_error("signals", error))?;
    journal.mounting(mountpoint).map_err(|error| io_error(&here(), error))?;
    let sender = ends.sender();
    let unmounted = move || {
        let _ = sender.send(End::Unmounted);
    };
    let waiting = fuse::serve(tree.clone(), mountpoint, daemon::owner(), unmounted)
        .map_err(|error| io_error(&here(), error))?;
    let mount = mounts::at(mountpoint).map_err(|error| io_error("/proc", error))?;
    // It may be gone already; then on_end has told so.
    let Some(mark) = mount.as_ref().map(mounts::mark) else { return Ok(waiting) };
    journal.mounted(&mark).map_err(|error| io_error("undo journal", error))?;
    match presence::show(&mark) {
        // Held until the process exits: that is its meaning.
        Ok(presence) => std::mem::forget(presence),
        Err(error) => log::warn!("vmtree umount can't wait for this mount's end: {error}"),
    }
    ends.watch_mount(mark).map_err(|error| io_error("watch the mount", error))?;
    Ok(waiting)
}

/// Looks at the mountpoint and the host before anything is done, detaches a dead mount of ours that is still
/// there, and returns the mountpoint's full path.
///
/// # Errors
/// What is wrong, with its cure.
pub fn check(mountpoint: &Path) -> Result<PathBuf> {
    let shown = mountpoint.display();
    let path = mounts::canonical(mountpoint).map_err(|error| {
        let cure = if error.kind() == io::ErrorKind::NotFound { "; make it first: mkdir -p" } else { "" };
        refused(ErrorKind::NotFound, format!("mountpoint {shown}: {error}{cure}"))
    })?;
    if let Some(mount) = mounts::at(&path).map_err(|error| io_error("/proc", error))? {
        heal(&mount)?;
    }
    let metadata = fs::metadata(&path).map_err(|error| io_error(&format!("mountpoint {shown}"), error))?;
    if !metadata.is_dir() {
        return Err(refused(ErrorKind::Invalid, format!("mountpoint {shown} is not a directory")));
    }
    check_device()?;
    Ok(path)
}

/// Detaches the mount if its daemon is gone; else the mountpoint is taken.
fn heal(mount: &Mount) -> Result<()> {
    let path = mount.path.display();
    let mark = mounts::mark(mount);
    if presence::watch(&mark).is_some() || !mounts::is_stale(mount) {
        let why = format!("{path} shows {} already; unmount it first: vmtree umount {path}", mount.source);
        return Err(refused(ErrorKind::Busy, why));
    }
    log::warn!("{path}: detaching the dead mount of {}", mount.source);
    mounts::detach(&mark).map_err(|error| io_error(&format!("detach the dead mount at {path}"), error))?;
    Ok(())
}

/// Looks whether FUSE can be had.
///
/// # Errors
/// What is missing, with its cure.
pub fn check_device() -> Result<()> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
        let cure = match error.kind() {
            io::ErrorKind::PermissionDenied => "run as root, or let this user open it: chmod 0666 /dev/fuse",
            _ => "load it: modprobe fuse (in a container: run it with --device /dev/fuse)",
        };
        return Err(refused(ErrorKind::NotFound, format!("/dev/fuse: {error}; {cure}")));
    }
    if daemon::is_root() || daemon::in_path("fusermount3") {
        return Ok(());
    }
    let why =
        "plain users mount by fusermount3, which is not there; install the package fuse3 or run as root";
    Err(refused(ErrorKind::Denied, why.to_owned()))
}

fn refused(kind: ErrorKind, why: String) -> Error {
    Error::new(kind, OP, why)
}

fn io_error(what: &str, error: io::Error) -> Error {
    let cure = match error.raw_os_error() {
        Some(_) if error.kind() == io::ErrorKind::PermissionDenied => {
            "; run as root, or install fuse3 and own the mountpoint"
        }
        // What fusermount3 says has its own cure.
        _ => "",
    };
    let told = error.to_string();
    let told: Vec<&str> = told.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Error::new(ErrorKind::Io, OP, format!("{what}: {}{cure}", told.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_helper_says_is_told_on_one_line_without_a_second_cure() {
        let said = "fusermount3: option allow_other only allowed if 'user_allow_other' is set\n\n";
        let helper = io_error("/mnt", io::Error::new(io::ErrorKind::PermissionDenied, said));
        assert_eq!(helper.why(), format!("/mnt: {}", said.trim()));
        let kernel = io_error("/mnt", io::Error::from_raw_os_error(13));
        assert!(kernel.why().ends_with("; run as root, or install fuse3 and own the mountpoint"), "{kernel}");
    }
}
