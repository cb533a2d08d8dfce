//! QEMU's run states, as `query-status` names them (QEMU's qapi/run-state.json).

use serde_json::Value;
use vmtree_api::{Error, ErrorKind, Result};

use crate::qmp::Qmp;

/// What a run state means to one who wants to stop the VM or to let it go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Status {
    /// The vCPUs run.
    Running,
    /// Somebody stopped it; `cont` lets it go on. `prelaunch` is a start with -S, or a reset of a stopped VM; `debug` is
    /// a step or a breakpoint of a gdbstub.
    Stopped,
    /// QEMU stopped it for a reason of its own: an I/O error, a panic, a watchdog, a shutdown with -no-shutdown.
    Failed,
    /// It stands still for something that ends by itself: an incoming migration, a snapshot, a guest that sleeps.
    Passing,
    /// It has moved to another QEMU and must not run here any more.
    Migrated,
}

impl Status {
    /// Asks QEMU.
    ///
    /// # Errors
    /// Those of [`Qmp::execute`], and [`ErrorKind::Protocol`] if the answer has no status.
    pub fn ask(qmp: &Qmp) -> Result<Self> {
        let answer = qmp.execute("query-status", Value::Null)?;
        match answer.get("status").and_then(Value::as_str) {
            Some(name) => Ok(Self::named(name)),
            None => Err(Error::new(ErrorKind::Protocol, "ask QEMU", "'query-status' told no status")),
        }
    }

    fn named(name: &str) -> Self {
        match name {
            "running" => Self::Running,
            "paused" | "prelaunch" | "debug" => Self::Stopped,
            "inmigrate" | "finish-migrate" | "save-vm" | "restore-vm" | "suspended" | "colo" => Self::Passing,
            "postmigrate" => Self::Migrated,
            // Also those that a later QEMU adds: a VM that is not said to run is not ours to let go on.
            _ => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_somebody_stopped_may_be_let_go_on() {
        for name in ["paused", "prelaunch", "debug"] {
            assert_eq!(Status::named(name), Status::Stopped);
        }
        for name in ["internal-error", "io-error", "watchdog", "guest-panicked", "shutdown", "later", ""] {
            assert_eq!(Status::named(name), Status::Failed);
        }
        assert_eq!(Status::named("postmigrate"), Status::Migrated);
        assert_eq!(Status::named("running"), Status::Running);
    }
}
