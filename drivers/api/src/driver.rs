//! The driver itself, and what it may ask of its host.

use std::fmt;

use crate::events::{EventSource, Injection};
use crate::views::Views;
use crate::{Execution, Facts, Memory, Registers};

/// Why a driver does not offer something, as the sentence that `capabilities` prints.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Missing {
    /// Why it is not there.
    pub why: String,
    /// What the user can do to have it, if anything.
    pub cure: Option<String>,
}

impl Missing {
    /// A gap that no setting of the user closes.
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), cure: None }
    }

    /// The same gap with what closes it.
    #[must_use]
    pub fn cure(mut self, cure: impl Into<String>) -> Self {
        self.cure = Some(cure.into());
        self
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cure {
            Some(cure) => write!(f, "{}; {cure}", self.why),
            None => f.write_str(&self.why),
        }
    }
}

/// An open VM. The accessor is the capability: what it returns works, and what is [`Missing`] says why.
///
/// An accessor answers the same each time for as long as the driver is open. Dropping a driver undoes all that
/// it armed and paused, and leaves the VM as it was found.
pub trait Driver: Send + Sync {
    /// What is known of the VM; cached, never a call to it.
    fn facts(&self) -> &Facts;
    /// Its physical memory.
    fn memory(&self) -> &dyn Memory;
    /// Its registers.
    ///
    /// # Errors
    /// [`Missing`] where the hypervisor doesn't show them.
    fn registers(&self) -> Result<&dyn Registers, Missing>;
    /// Pause, resume and step.
    ///
    /// # Errors
    /// [`Missing`] where the VM can't be stopped by us.
    fn execution(&self) -> Result<&dyn Execution, Missing>;
    /// Hardware events.
    ///
    /// # Errors
    /// [`Missing`] where none can be had.
    fn events(&self) -> Result<&dyn EventSource, Missing>;
    /// SLAT permissions and views.
    ///
    /// # Errors
    /// [`Missing`] where they can't be changed.
    fn views(&self) -> Result<&dyn Views, Missing>;
    /// Fault, exception and interrupt injection.
    ///
    /// # Errors
    /// [`Missing`] where nothing can be injected.
    fn injection(&self) -> Result<&dyn Injection, Missing>;
}

/// The party that opened a driver, told of what happens to the VM. Calls must return at once.
pub trait Host: Send + Sync {
    /// The VM is gone; every later driver call fails with [`crate::ErrorKind::Gone`]. May be called more than once.
    fn ended(&self, why: &str);

    /// Keeps what is to be undone if this process is killed, in the place of what it kept before, where the processes
    /// that outlive it find it; empty: nothing. They hand it to the driver's own recovery. Called before each act that
    /// would outlive the process: a VM that is stopped for an instant, an event ring that is taken. See [`crate::undo::Undo`].
    ///
    /// # Errors
    /// It could not be kept, and what was kept before stands: the act must not be done.
    fn note(&self, undo: &str) -> crate::Result<()> {
        let _ = undo;
        Ok(())
    }
}

/// A host that doesn't care, for `vmtree info`, `vmtree list` and tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHost;

impl Host for NoHost {
    fn ended(&self, _why: &str) {}
}

/// A running VM that a driver found on this host, for `vmtree list`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listed {
    /// The SOURCE to mount it by.
    pub source: String,
    /// What it is, in a few words: name, state, memory.
    pub about: String,
}

/// One thing that a driver needs of the host, for `vmtree doctor`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Check {
    /// What is looked at, in a few words.
    pub what: String,
    /// `Ok` with what was found, or what is missing and its cure.
    pub found: Result<String, Missing>,
}
