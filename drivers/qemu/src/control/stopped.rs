//! What can be done while the VM stands still for an instant.

use std::sync::Arc;

use serde_json::Value;
use vmtree_api::{Error, ErrorKind, Result};

use super::{PATIENCE, Session};
use crate::qmp::Qmp;
use crate::runstate::Status;

/// The VM during [`Control::while_stopped`].
pub struct Stopped<'a> {
    session: &'a mut Session,
    line: Arc<Qmp>,
    /// It was running when we came.
    ours: bool,
}

impl<'a> Stopped<'a> {
    /// The VM, which stands still; `ours` says that it is us who stopped it.
    pub(super) fn new(session: &'a mut Session, line: Arc<Qmp>, ours: bool) -> Self {
        Self { session, line, ours }
    }

    /// The monitor.
    #[must_use]
    pub fn qmp(&self) -> &Qmp {
        &self.line
    }

    /// Whether the VM was running when we came, so that it will go on.
    #[must_use]
    pub fn was_running(&self) -> bool {
        self.ours
    }

    /// Stops the VM again if somebody has let it run since. `broke_in` says that a request to the gdbstub has stopped it
    /// already: QEMU stops at any byte that comes. What they let run goes on at the end, as they left it.
    /// Returns whether somebody has let it run.
    ///
    /// # Errors
    /// The VM may run.
    pub fn renew(&mut self, broke_in: bool) -> Result<bool> {
        let events = self.session.heard(self.line.events())?;
        self.session.suspect_map(&events);
        // A STOP alone: the RESUME before it was noted just after QEMU had told that it stood still.
        let resumed = events.iter().any(|event| matches!(event.as_str(), "RESUME" | "STOP"));
        if resumed {
            self.session.void();
            self.ours = false;
        }
        if resumed && broke_in {
            // Not known yet, but if so, nobody else will undo it.
            self.session.owe()?;
        }
        match self.session.status()? {
            // By now it owes nothing.
            Status::Running => self.ours = self.session.stop_now()?,
            _ => self.ours |= self.session.owed && resumed,
        }
        Ok(resumed)
    }

    /// Does `f`, in which the VM is run and stopped through a gdbstub: STOP and RESUME are taken for our own then. The
    /// VM stands still again when this returns.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if somebody has let the VM run before; those of `f`.
    pub fn stepping<T>(&mut self, f: impl FnOnce(&Qmp) -> Result<T>) -> Result<T> {
        if self.session.status()? == Status::Running {
            return Err(Error::new(ErrorKind::Busy, "step", "somebody has let the VM run meanwhile"));
        }
        let line = Arc::clone(&self.line);
        self.session.debts.step()?;
        let result = f(&line);
        self.session.heard(line.execute("stop", Value::Null))?;
        self.session.ignore_own(&line)?;
        self.session.note_clock(&line);
        self.session.debts.step_done();
        result
    }

    /// Lets it go on, if it is us who stopped it.
    ///
    /// # Errors
    /// The VM could not be told to go on.
    pub(super) fn end(mut self) -> Result<()> {
        self.give_back()
    }

    fn give_back(&mut self) -> Result<()> {
        if std::mem::take(&mut self.ours) { self.session.release(PATIENCE) } else { Ok(()) }
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        // Logged there.
        let _ = self.give_back();
    }
}
