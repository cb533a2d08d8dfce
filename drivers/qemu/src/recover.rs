//! What a killed daemon of ours left behind: a VM that stands still, a gdbstub that is open, a folder.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use vmtree_api::{ErrorKind, Result};

use crate::clock::Clock;
use crate::control::Control;
use crate::debts::{Debts, Noted};
use crate::find::{self, Found};
use crate::gdb::{door, folder};
use crate::qmp::Qmp;
use crate::runstate::Status;
use crate::source::Target;

/// How long a monitor that does not answer is tried: the dead daemon's connection may still stand in it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Undoes what the driver of a daemon that was killed noted of the VM of `source` (`qemu:...`). A VM that it had stopped
/// runs on, unless it runs, or somebody has let it run since.
///
/// # Errors
/// The VM is there and could not be told; those of finding it.
pub fn recover(source: &str, note: &str) -> Result<()> {
    let noted = Noted::parse(note);
    let undone = if noted.is_gone() { Ok(()) } else { try_undo(source, &noted) };
    folder::sweep();
    undone
}

fn try_undo(source: &str, noted: &Noted) -> Result<()> {
    let target = Target::parse(source.strip_prefix("qemu:").unwrap_or(source))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match undo(&target, noted) {
            // A VM that is gone needs nothing.
            Err(error) if matches!(error.kind(), ErrorKind::Gone) => return Ok(()),
            Err(error) if Instant::now() < deadline && error.kind() != ErrorKind::NotFound => {
                log::debug!("trying again: {error}");
                thread::sleep(Duration::from_millis(100));
            }
            result => return result,
        }
    }
}

fn undo(target: &Target, noted: &Noted) -> Result<()> {
    let Found { qmp, pid } = find::connect(target)?;
    if noted.process.is_some_and(|process| process.pid != pid) {
        // The one that we owed something listens there no more.
        return Ok(());
    }
    let control = Control::new(qmp, Arc::default(), Debts::default())?;
    let ours = {
        let mut session = control.lock();
        let line = session.settle()?;
        if noted.stepping && session.status()? == Status::Running {
            // A vCPU that waits in a step goes on stepping else, and the others stand still.
            line.execute("stop", Value::Null)?;
        }
        // Before the VM runs: what is left in the gdbstub's socket would stop it.
        if let Err(error) = door::clear(&line) {
            log::debug!("a gdbstub may be left over: {error}");
        }
        noted.stopped && !(noted.at.is_some() && !noted.stepping && has_run(&line, noted)?)
    };
    if ours { control.adopt() } else { Ok(()) }
}

/// Whether somebody has let the VM run since it was stopped by us: whoever stopped it then, it was not us.
fn has_run(line: &Qmp, noted: &Noted) -> Result<bool> {
    let (Some(then), Some(now)) = (noted.at, Clock::read(line)?) else { return Ok(false) };
    Ok(then.differs(now))
}
