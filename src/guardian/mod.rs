//! The guardian: a process that undoes what a killed daemon left. It holds the reading end of a pipe whose other
//! end only the daemon has, and the undo [`journal`]. When the pipe ends, so has the daemon.

pub mod connection;
pub mod journal;
pub mod keep;
pub mod mounts;
pub mod notes;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use journal::{Journal, Owed};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::drivers;

/// How often it looks whether the daemon died without its pipe ending.
const LOOK: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// The body of the hidden command `vmtree guardian`: standard input is the pipe, standard output the journal.
///
/// # Errors
/// It was not started by a daemon.
pub fn main() -> io::Result<()> {
    let daemon = rustix::process::getppid();
    // It must outlive whatever ends the daemon: a terminal's Ctrl-C, a service manager's SIGTERM.
    let ignored = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, ignored.clone())?;
    }
    // It fails where the process leads its group already, and then it isn't needed.
    let _ = rustix::process::setsid();
    std::env::set_current_dir("/")?;
    crate::daemon::name_process();
    let journal = Journal::open(File::from(io::stdout().as_fd().try_clone_to_owned()?))?;
    wait_for_end(&journal, daemon);
    undo(&journal, true)
}

fn wait_for_end(journal: &Journal, daemon: Option<Pid>) {
    let mut pipe = io::stdin().lock();
    let mut byte = [0];
    loop {
        let waited = rustix::event::poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&LOOK));
        if matches!(waited, Ok(0)) {
            if daemon.is_some_and(hangs) {
                free(journal);
            }
            continue;
        }
        match pipe.read(&mut byte) {
            Ok(0) => return,
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return,
            _ => {}
        }
    }
}

/// Whether a process is dead, but for a thread that waits in the kernel (proc(5), /proc/PID/stat): it then keeps all of its files.
fn hangs(daemon: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.as_raw_nonzero())).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    matches!(state, Some('Z' | 'X'))
}

/// Ends what the thread waits for.
fn free(journal: &Journal) {
    let Ok(Some(mark)) = journal.read_mounted() else { return };
    // Once it is not there any more, another one can have its device's number.
    if !matches!(mounts::is_there(&mark), Ok(true)) {
        return;
    }
    if let Err(error) = connection::abort(&mark.id.device) {
        log::error!("{}: its daemon is dead and can't end: {error}", mark.path.display());
    }
}

/// Undoes what the journal says, unless another process is at it: then it waits for that one, or with `wait` false
/// leaves it to it. What is undone is taken out of the journal.
///
/// # Errors
/// The journal could not be read. What can't be undone is logged.
pub fn undo(journal: &Journal, wait: bool) -> io::Result<()> {
    let Some(_lock) = journal.lock(wait)? else { return Ok(()) };
    if let Some(mark) = journal.read_mounted()? {
        match mounts::detach(&mark) {
            Ok(true) => log::info!("{}: detached", mark.path.display()),
            Ok(false) => {}
            Err(error) => log::error!("detach {}: {error}", mark.path.display()),
        }
    }
    if let Some(path) = journal.read_mounting()? {
        undo_unfinished(&path);
    }
    journal.unmounted()?;
    if let Some(owed) = journal.read_owed()? {
        recover(&owed);
    }
    journal.undone()
}

/// The daemon died between mounting and noting the mount: a mount there that is dead is its own.
fn undo_unfinished(path: &Path) {
    let Ok(Some(mount)) = mounts::at(path) else { return };
    if !mounts::is_stale(&mount) {
        return;
    }
    if let Err(error) = mounts::detach(&mounts::mark(&mount)) {
        log::error!("detach {}: {error}", path.display());
    }
}

fn recover(owed: &Owed) {
    let Owed { source, directory, note } = owed;
    // Relative paths in the source were the daemon's.
    let _ = std::env::set_current_dir(directory);
    match drivers::recover(source, note) {
        Ok(()) => log::info!("{source}: undone: {}", note.trim_end().replace('\n', ", ")),
        Err(error) => log::error!("undo what was done to {source}: {error}"),
    }
    let _ = std::env::set_current_dir("/");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undoing_an_empty_journal_or_a_mount_that_is_gone_is_no_error() {
        let journal = Journal::create().unwrap();
        undo(&journal, true).unwrap();
        journal.mounted(&mounts::nowhere()).unwrap();
        journal.mounting(Path::new("/nowhere")).unwrap();
        undo(&journal, true).unwrap();
        assert_eq!(journal.read_mounted().unwrap(), None);
        assert_eq!(journal.read_mounting().unwrap(), None);
    }

    #[test]
    fn a_note_is_undone_once_even_where_its_driver_is_unknown_or_its_directory_gone() {
        let journal = Journal::create().unwrap();
        for source in ["emu:", "vmware:x", ""] {
            journal.vm(source, Path::new("/nowhere/at/all")).unwrap();
            journal.note("stopped").unwrap();
            undo(&journal, true).unwrap();
            assert_eq!(journal.read_owed().unwrap(), None);
        }
    }

    #[test]
    fn what_another_process_is_undoing_is_left_to_it() {
        let journal = Journal::create().unwrap();
        journal.mounting(Path::new("/nowhere")).unwrap();
        let other = journal.lock(true).unwrap();
        undo(&journal, false).unwrap();
        assert!(journal.read_mounting().unwrap().is_some());
        drop(other);
        undo(&journal, false).unwrap();
        assert_eq!(journal.read_mounting().unwrap(), None);
    }
}
