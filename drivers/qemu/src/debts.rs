//! What QEMU must be told if we are killed: noted with the host before the act, and read back by the recovery.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmtree_api::undo::{Undo, entry};
use vmtree_api::{Host, Result};

use crate::clock::Clock;

const STOPPED: &str = "stopped";
const STEPPING: &str = "stepping";
const GDBSTUB: &str = "gdbstub";

/// What we would owe to a QEMU.
#[derive(Default)]
pub struct Debts {
    undo: Undo,
    process: Option<Process>,
}

/// A process that no later one with the same id is taken for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// When it was started, in ticks since boot (proc(5), /proc/PID/stat).
    start: u64,
}

impl Process {
    /// The process that has this id now; `None` if there is none, or /proc hides it.
    #[must_use]
    pub fn now(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before it may hold anything. The third field comes first then; the 22nd is the start.
        let start = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
        Some(Self { pid, start })
    }

    fn parse(text: &str) -> Option<Self> {
        let (pid, start) = text.split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, start: start.parse().ok()? })
    }
}

impl Debts {
    /// Those to the QEMU with this process id, kept by `host`.
    #[must_use]
    pub fn new(pid: u32, host: Arc<dyn Host>) -> Self {
        Self { undo: Undo::new(host), process: Process::now(pid) }
    }

    /// We are about to stop the VM, or have, at this time of its clock.
    ///
    /// # Errors
    /// Those of [`Undo::note`].
    pub fn stop(&self, at: Option<Clock>) -> Result<()> {
        self.note(STOPPED, &at.map_or_else(String::new, |clock| clock.to_string()))
    }

    /// We are about to let one vCPU of a stopped VM step.
    ///
    /// # Errors
    /// Those of [`Undo::note`].
    pub fn step(&self) -> Result<()> {
        self.note(STEPPING, "")
    }

    /// We are about to open the gdbstub, in this folder.
    ///
    /// # Errors
    /// Those of [`Undo::note`].
    pub fn gdbstub(&self, folder: &Path) -> Result<()> {
        self.note(GDBSTUB, &folder.to_string_lossy())
    }

    /// The VM runs, or stands still by somebody else.
    pub fn stop_done(&self) {
        self.done(STOPPED);
    }

    /// The VM stands still again.
    pub fn step_done(&self) {
        self.done(STEPPING);
    }

    /// The gdbstub is closed.
    pub fn gdbstub_done(&self) {
        self.done(GDBSTUB);
    }

    fn note(&self, what: &'static str, how: &str) -> Result<()> {
        match self.process {
            Some(Process { pid, start }) => self.undo.note(what, &format!("{pid} {start} {how}")),
            None => self.undo.note(what, &format!("- - {how}")),
        }
    }

    fn done(&self, what: &str) {
        self.undo.done(what);
    }
}

/// What a process of ours that was killed owed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Noted {
    /// The QEMU, if it could be told from others.
    pub process: Option<Process>,
    /// It was about to stop the VM, or had.
    pub stopped: bool,
    /// The time of the VM's clock since it stopped it, if it had looked.
    pub at: Option<Clock>,
    /// It let one vCPU of a stopped VM step.
    pub stepping: bool,
    /// Where it had the gdbstub open.
    pub gdbstub: Option<PathBuf>,
}

impl Noted {
    /// Reads a note that [`Debts`] made. What makes no sense in it is nothing owed.
    #[must_use]
    pub fn parse(note: &str) -> Self {
        let mut noted = Self::default();
        let mut read = |what| {
            let mut words = entry(note, what)?.splitn(3, ' ');
            let (pid, start) = (words.next()?, words.next()?);
            noted.process = Process::parse(&format!("{pid} {start}"));
            words.next()
        };
        let (stopped, stepping, gdbstub) = (read(STOPPED), read(STEPPING), read(GDBSTUB));
        noted.stopped = stopped.is_some();
        noted.at = stopped.and_then(Clock::parse);
        noted.stepping = stepping.is_some();
        noted.gdbstub = gdbstub.map(PathBuf::from);
        noted
    }

    /// Whether the QEMU has ended.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.process.is_some_and(|process| Process::now(process.pid) != Some(process))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use proptest::prelude::*;

    #[derive(Default)]
    struct Keeper(Mutex<String>);

    impl Host for Keeper {
        fn ended(&self, _why: &str) {}

        fn note(&self, undo: &str) -> Result<()> {
            undo.clone_into(&mut self.0.lock());
            Ok(())
        }
    }

    #[test]
    fn what_is_noted_is_read_back_until_it_is_done() {
        let host = Arc::new(Keeper::default());
        let debts = Debts::new(std::process::id(), host.clone());
        let noted = || Noted::parse(&host.0.lock());
        assert_eq!(noted(), Noted::default());
        debts.stop(None).unwrap();
        assert!(noted().stopped && noted().at.is_none() && !noted().is_gone());
        let clock = Clock::parse("608 aac00a");
        assert!(clock.is_some());
        debts.stop(clock).unwrap();
        debts.step().unwrap();
        debts.gdbstub(Path::new("/tmp/a b")).unwrap();
        let process = Process::now(std::process::id());
        let gdbstub = Some(PathBuf::from("/tmp/a b"));
        assert_eq!(noted(), Noted { process, stopped: true, at: clock, stepping: true, gdbstub });
        debts.stop_done();
        debts.gdbstub_done();
        assert_eq!(noted(), Noted { process, stepping: true, ..Noted::default() });
        debts.step_done();
        assert_eq!(noted(), Noted::default());
    }

    #[test]
    fn a_process_that_ended_or_has_another_start_is_gone() {
        let mut process = Process::now(std::process::id()).unwrap();
        process.start += 1;
        assert!(Noted { process: Some(process), ..Noted::default() }.is_gone());
        assert!(!Noted::parse("stopped - - ").is_gone() && Noted::parse("stopped - - ").stopped);
        assert_eq!(Process::now(u32::MAX), None);
    }

    proptest! {
        #[test]
        fn never_panics(note: String, how in "[0-9a-f -]{0,30}") {
            let _ = Noted::parse(&note);
            let _ = Noted::parse(&format!("stopped {how}\nstepping {how}\ngdbstub {how}\n"));
        }
    }
}
