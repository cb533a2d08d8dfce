//! Stopping the VM and letting it go on.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Missing, Result, VcpuId};

/// Whether the guest runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RunState {
    /// The vCPUs run.
    Running,
    /// The vCPUs stand still, whoever stopped them.
    Paused,
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Paused => "paused",
        })
    }
}

/// Pause, resume and step. These calls are *posted*: they may take as long as the hypervisor takes.
pub trait Execution: Send + Sync {
    /// Whether the guest runs now.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Gone`] where the VM is.
    fn state(&self) -> Result<RunState>;

    /// Stops all vCPUs. When it returns, no instruction is executed until the [`Pause`] is given back.
    /// Pauses count: the VM runs again when the last one ends, and only if nobody else paused it.
    ///
    /// # Errors
    /// The VM runs on.
    fn pause(&self) -> Result<Pause>;

    /// Lets the VM run whoever paused it. Our own pauses that are still held are void from then on.
    ///
    /// # Errors
    /// The VM stays as it was.
    fn force_resume(&self) -> Result<()>;

    /// Whether the VM can be stepped, or why not: [`Execution::step`] then is [`crate::ErrorKind::Unsupported`].
    ///
    /// # Errors
    /// Why not.
    fn steps(&self) -> std::result::Result<(), Missing> {
        Ok(())
    }

    /// Executes up to `count` instructions on `vcpu` while all others stand still, and returns how many it
    /// executed: fewer only if `cancel` was raised or the vCPU halted for good. `count` 0 returns 0.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Busy`] unless the VM is paused, [`crate::ErrorKind::NotFound`] for a vCPU that is not there.
    fn step(&self, vcpu: VcpuId, count: u64, cancel: &Cancel) -> Result<u64>;
}

/// A pause that this process asked for. It ends by [`Pause::resume`] or, on any other path, by being dropped.
#[must_use = "a dropped pause lets the VM run on"]
pub struct Pause {
    undo: Option<Box<dyn FnOnce() -> Result<()> + Send + Sync>>,
    exclusive: bool,
}

impl Pause {
    /// A pause that `undo` ends, and nobody else can end while it is held.
    pub fn new(undo: impl FnOnce() -> Result<()> + Send + Sync + 'static) -> Self {
        Self { undo: Some(Box::new(undo)), exclusive: true }
    }

    /// The same pause, where another client of the hypervisor can let the VM run all the same.
    pub fn shared(mut self) -> Self {
        self.exclusive = false;
        self
    }

    /// Whether the VM stands still for as long as this is held, so that copies of its memory stay true.
    #[must_use]
    pub fn exclusive(&self) -> bool {
        self.exclusive
    }

    /// Ends the pause and tells whether that worked.
    ///
    /// # Errors
    /// The VM could not be told; it is gone or does not answer.
    pub fn resume(mut self) -> Result<()> {
        match self.undo.take() {
            Some(undo) => undo(),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pause")
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        if let Some(undo) = self.undo.take() {
            // Nobody is left to tell; a VM that can't be resumed is gone.
            let _ = undo();
        }
    }
}

/// Raised by the caller of a long call who no longer waits for it; looked at by the driver now and then.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks the call to end early.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the caller has gone.
    #[must_use]
    pub fn raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn a_pause_ends_exactly_once_on_every_path() {
        let ended = Arc::new(AtomicU32::new(0));
        let pause = || {
            let ended = ended.clone();
            Pause::new(move || {
                ended.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
        };
        drop(pause());
        assert_eq!(ended.load(Ordering::Relaxed), 1);
        pause().resume().unwrap();
        assert_eq!(ended.load(Ordering::Relaxed), 2);
    }
}
