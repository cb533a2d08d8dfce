//! Stopping a VM of which a vCPU is held at an event.
//!
//! QEMU's `stop` stops the other vCPUs at once, then waits for the held one, and its monitor is deaf meanwhile. So nobody waits
//! for such a `stop`: the VM counts as paused, and is let go on when the event was answered and the `stop` is done.

use serde_json::Value;
use vmtree_api::{Error, ErrorKind, Result};

use crate::control::Session;

impl Session {
    /// Whether some vCPU is held.
    fn is_held(&self) -> bool {
        self.holds.as_ref().is_some_and(|holds| holds.any())
    }

    /// Whether a `stop` of ours still waits for a held vCPU.
    pub fn is_stopping(&mut self) -> bool {
        if !self.stopping || self.link.check_alive().is_err() {
            return false;
        }
        if self.is_held() {
            return true;
        }
        let Ok(line) = self.open_line() else { return true };
        let holds = self.holds.clone();
        let held = || holds.as_ref().is_some_and(|holds| holds.any());
        // QEMU does one command after the other.
        let done = self.heard(line.execute_unless("query-status", Value::Null, held));
        self.stopping = matches!(done, Ok(None));
        if !self.stopping && self.pauses > 0 {
            // What a pause notes at once where nobody is held.
            self.note_clock(&line);
        }
        self.stopping
    }

    /// # Errors
    /// [`ErrorKind::Busy`] while QEMU's monitor is deaf.
    pub fn refuse_while_stopping(&mut self) -> Result<()> {
        if self.is_stopping() {
            let why = "QEMU waits to stop until a held event is answered; answer it first";
            return Err(Error::new(ErrorKind::Busy, "reach QEMU", why));
        }
        Ok(())
    }

    /// Stops the VM for something that is done now, so not while a vCPU is held.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] where one is, or comes to be; those of [`Session::stop`].
    pub fn stop_now(&mut self) -> Result<bool> {
        if let Some(holds) = &self.holds {
            holds.refuse("stop the VM")?;
        }
        let stopped = self.stop()?;
        // It is owed a `cont` then, which the keeper gives.
        self.refuse_while_stopping()?;
        Ok(stopped)
    }
}
