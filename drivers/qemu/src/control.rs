//! The one lock around stopping the VM and letting it go on, and the book of what we owe it.
//!
//! Others stop it and let it go on too. We owe a `cont` from our `stop` until it is given or until somebody else lets
//! the VM run; QEMU's events tell us so, because the connection stays open in between.

mod stopped;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use vmtree_api::{Error, ErrorKind, Result};

use crate::agent::Holds;
use crate::clock::Clock;
use crate::debts::Debts;
use crate::link::Link;
use crate::qmp::Qmp;
use crate::runstate::Status;
pub use stopped::Stopped;

/// How long we try to let the VM go on where its monitor does not answer; then the watcher goes on trying.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Control over a VM.
pub struct Control {
    session: Mutex<Session>,
    debts: Arc<Debts>,
}

/// What is known while the lock is held.
pub struct Session {
    pub link: Link,
    /// Our pauses that still count.
    pub pauses: u32,
    /// Grows when somebody else ends our pauses: those of an earlier epoch count no more.
    pub epoch: u64,
    /// We stopped the VM, and nobody has let it run since.
    owed: bool,
    /// A `stop` of ours waits in QEMU for a vCPU that is held.
    pub stopping: bool,
    /// The vCPUs that are held, where there is an agent.
    pub holds: Option<Arc<Holds>>,
    /// The same as `owed`, noted for those who come after us before we do it.
    debts: Arc<Debts>,
    /// The VM's clock in our pause.
    clock: Option<Clock>,
    /// Events told that the memory map may have changed, or some were missed.
    pub map_suspect: bool,
}

impl Control {
    /// Control through `qmp` and its successors; `ended` is set when QEMU has ended. What we owe is noted in `debts`.
    ///
    /// # Errors
    /// Those of [`Qmp::peer`].
    pub fn new(qmp: Qmp, ended: Arc<AtomicBool>, debts: Debts) -> Result<Self> {
        let (link, debts) = (Link::new(qmp, ended)?, Arc::new(debts));
        let session = Session {
            link,
            pauses: 0,
            epoch: 0,
            owed: false,
            stopping: false,
            holds: None,
            debts: Arc::clone(&debts),
            clock: None,
            map_suspect: false,
        };
        Ok(Self { session: Mutex::new(session), debts })
    }

    /// What we owe to this QEMU.
    #[must_use]
    pub fn debts(&self) -> Arc<Debts> {
        Arc::clone(&self.debts)
    }

    /// The session, for this caller alone.
    pub fn lock(&self) -> MutexGuard<'_, Session> {
        self.session.lock()
    }

    /// The session, unless somebody has it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, Session>> {
        self.session.try_lock()
    }

    /// Gives the `cont` that a dead process of ours owed.
    ///
    /// # Errors
    /// It could not be given.
    pub fn adopt(&self) -> Result<()> {
        let mut session = self.lock();
        session.owed = true;
        session.release(Duration::ZERO).inspect_err(|_| session.owed = false)
    }

    /// Does `f` while the VM stands still, and leaves it as it was found on every path: what ran goes on, unless
    /// somebody else has stopped or resumed it meanwhile; what was stopped stays so.
    ///
    /// # Errors
    /// Those of `f`, and those of reaching QEMU.
    pub fn while_stopped<T>(&self, f: impl FnOnce(&mut Stopped<'_>) -> Result<T>) -> Result<T> {
        let mut session = self.lock();
        if let Some(holds) = &session.holds {
            holds.refuse_waiting("stop the VM for an instant")?;
        }
        let line = session.settle()?;
        let status = if session.owed { Status::Stopped } else { session.status()? };
        let ours = match status {
            Status::Running => session.stop_now()?,
            Status::Stopped | Status::Failed | Status::Passing => false,
            Status::Migrated => return Err(migrated()),
        };
        let mut stopped = Stopped::new(&mut session, line, ours);
        let value = f(&mut stopped)?;
        stopped.end()?;
        Ok(value)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // What could not be given back is logged there.
        let _ = self.session.get_mut().release(PATIENCE);
    }
}

/// The VM is no longer here.
pub fn migrated() -> Error {
    Error::new(ErrorKind::Gone, "reach QEMU", "the VM has migrated away")
}

impl Session {
    /// Connects if needed, and takes note of what others have done.
    ///
    /// # Errors
    /// Those of [`Link::connect`].
    pub fn settle(&mut self) -> Result<Arc<Qmp>> {
        self.link.check_alive()?;
        self.link.touch();
        self.refuse_while_stopping()?;
        if let Some(line) = self.link.line() {
            match self.note(&line) {
                Ok(()) => return Ok(line),
                Err(error) => log::debug!("connecting anew: {error}"),
            }
        }
        let line = self.link.connect()?;
        self.map_suspect = true;
        // What happened in between was not heard; only that it runs can be seen.
        if self.pauses > 0 || self.owed {
            self.status()?;
        }
        Ok(line)
    }

    /// The state now, with all events before it noted.
    ///
    /// # Errors
    /// Those of [`Status::ask`]; then the connection is closed.
    pub fn status(&mut self) -> Result<Status> {
        let line = self.open_line()?;
        let status = self.heard(Status::ask(&line))?;
        self.note(&line)?;
        if status == Status::Running {
            self.void();
        }
        Ok(status)
    }

    /// Stops the running VM, and returns whether it was us who stopped it.
    ///
    /// # Errors
    /// The VM runs on, or will as soon as QEMU can be reached.
    pub fn stop(&mut self) -> Result<bool> {
        let line = self.open_line()?;
        // Owed from here on: who knows what has happened when no answer comes.
        self.owe()?;
        let holds = self.holds.clone();
        let held = || holds.as_ref().is_some_and(|holds| holds.any());
        let answer = self.heard(line.execute_unless("stop", Value::Null, held));
        let answer = answer.and_then(|answer| Ok((answer, self.heard(line.events())?)));
        match answer {
            Ok((None, events)) => {
                self.suspect_map(&events);
                self.stopping = true;
                Ok(true)
            }
            Ok((Some(_), events)) => {
                self.suspect_map(&events);
                // A stop of a stopped VM has no event. One that is resumed at once was resumed by somebody else.
                let last = events.iter().rev().find(|event| matches!(event.as_str(), "STOP" | "RESUME"));
                if last.is_none_or(|event| event != "STOP") {
                    self.owe_nothing();
                }
                Ok(self.owed)
            }
            Err(error) => {
                let _ = self.release(PATIENCE);
                Err(error)
            }
        }
    }

    /// Gives the `cont` that we owe, if we do, trying for as long as `patience` says.
    ///
    /// # Errors
    /// It could not be given; unless the VM is gone, it is still owed.
    pub fn release(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        // One that waits to stop is let go on by the keeper, once it has stopped.
        while self.owed && !self.is_stopping() {
            match self.try_release() {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Gone && self.link.check_alive().is_err() => {
                    self.owe_nothing();
                    return Err(error);
                }
                Err(error) if Instant::now() >= deadline => {
                    log::error!("the VM may still be stopped by us; trying on: {error}");
                    return Err(error);
                }
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
        Ok(())
    }

    fn try_release(&mut self) -> Result<()> {
        let line = self.settle()?;
        if !self.owed {
            return Ok(());
        }
        // Asked also because a VM that was stopped by us may have been moved away: it must not run twice.
        let status = self.status()?;
        if self.owed && status == Status::Stopped {
            self.heard(line.execute("cont", Value::Null))?;
            self.ignore_own(&line)?;
        }
        self.owe_nothing();
        Ok(())
    }

    /// Lets the VM run, whoever stopped it.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if QEMU refuses; the VM stays as it was.
    pub fn force(&mut self) -> Result<()> {
        let line = self.open_line()?;
        self.heard(line.execute("cont", Value::Null)).map_err(|error| match error.kind() {
            ErrorKind::Invalid => Error::new(ErrorKind::Busy, "resume", error.why()),
            _ => error,
        })?;
        self.void();
        self.ignore_own(&line)
    }

    /// Somebody else has let the VM run: our pauses are over.
    pub fn void(&mut self) {
        if self.owed || self.pauses > 0 {
            self.pauses = 0;
            self.epoch += 1;
        }
        self.owe_nothing();
    }

    fn owe(&mut self) -> Result<()> {
        self.debts.stop(None)?;
        self.owed = true;
        Ok(())
    }

    fn owe_nothing(&mut self) {
        self.owed = false;
        self.clock = None;
        self.debts.stop_done();
        self.debts.step_done();
    }

    /// Notes the VM's clock, where a stop of ours will hold for longer: whoever has let the VM run when we are dead is
    /// known by it. Where it can't be had, the note says less.
    pub fn note_clock(&mut self, line: &Qmp) {
        if !self.owed {
            return;
        }
        let read = self.clock.map_or_else(|| Clock::read(line), |clock| clock.again(line));
        match self.heard(read).and_then(|clock| self.debts.stop(clock).map(|()| clock)) {
            Ok(clock) => self.clock = clock,
            Err(error) => log::debug!("the VM's clock is not noted: {error}"),
        }
    }

    /// Whether the VM stands still by us, as far as we have heard.
    #[must_use]
    pub fn holds_still(&self) -> bool {
        self.owed || self.pauses > 0
    }

    /// Now and then: hears what others did, gives what is still owed after a failure, and lets an idle connection go.
    pub fn tend(&mut self) {
        if let Some(line) = self.link.line() {
            // Broken, it is closed.
            let _ = self.note(&line);
        }
        let stopping = self.is_stopping();
        if self.owed && self.pauses == 0 && !stopping && self.release(Duration::ZERO).is_ok() {
            log::info!("the VM is let go on after all");
        }
        if !self.owed {
            self.link.close_if_idle();
        }
    }

    pub fn open_line(&mut self) -> Result<Arc<Qmp>> {
        match self.link.line() {
            Some(line) => Ok(line),
            None => self.link.connect(),
        }
    }

    /// Closes a connection that is broken.
    pub fn heard<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            let refused =
                matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Unsupported | ErrorKind::NotFound);
            if !refused {
                self.link.close();
            }
        }
        result
    }

    /// Takes note of the events that have come.
    fn note(&mut self, line: &Qmp) -> Result<()> {
        let events = self.heard(line.events())?;
        self.suspect_map(&events);
        if events.iter().any(|event| event == "RESUME") {
            self.void();
        }
        Ok(())
    }

    /// Takes note of events of which STOP and RESUME are our own.
    fn ignore_own(&mut self, line: &Qmp) -> Result<()> {
        let events = self.heard(line.events())?;
        self.suspect_map(&events);
        Ok(())
    }

    fn suspect_map(&mut self, events: &[String]) {
        const TELLING: &[&str] = &["RESET", "DEVICE_DELETED", "MEMORY_DEVICE_SIZE_CHANGE", "MIGRATION"];
        self.map_suspect |= events.iter().any(|event| TELLING.contains(&event.as_str()));
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "control_fake_tests.rs"]
mod fake_tests;
