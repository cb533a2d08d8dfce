//! Pause and resume, beside others who do the same.

use std::sync::{Arc, Weak};

use vmtree_api::{Cancel, Error, ErrorKind, Execution, Pause, Result, RunState, VcpuId};

use crate::control::{Control, PATIENCE, Session, migrated};
use crate::registers::Access;
use crate::runstate::Status;

/// The execution of a VM under this control; its gdbstub steps.
pub struct Vm(pub Arc<Control>, pub Arc<Access>);

impl Execution for Vm {
    fn state(&self) -> Result<RunState> {
        let mut session = self.0.lock();
        if session.is_stopping() {
            // Without a pause of ours it goes on as soon as it has stopped.
            return Ok(if session.pauses > 0 { RunState::Paused } else { RunState::Running });
        }
        session.settle()?;
        Ok(match session.status()? {
            Status::Running => RunState::Running,
            Status::Migrated => return Err(migrated()),
            Status::Stopped | Status::Failed | Status::Passing => RunState::Paused,
        })
    }

    fn pause(&self) -> Result<Pause> {
        let mut session = self.0.lock();
        if !session.is_stopping() {
            stop(&mut session)?;
        }
        session.pauses += 1;
        if session.pauses == 1
            && !session.stopping
            && let Some(line) = session.link.line()
        {
            session.note_clock(&line);
        }
        let (control, epoch) = (Arc::downgrade(&self.0), session.epoch);
        // Whoever else has a monitor of this QEMU can let it run.
        Ok(Pause::new(move || resume(&control, epoch)).shared())
    }

    fn force_resume(&self) -> Result<()> {
        let mut session = self.0.lock();
        if session.is_stopping() {
            // It goes on as soon as it has stopped.
            session.pauses = 0;
            session.epoch += 1;
            return Ok(());
        }
        session.settle()?;
        match session.status()? {
            Status::Running => Ok(()),
            Status::Migrated => Err(migrated()),
            Status::Passing => Err(busy("QEMU sleeps, migrates or takes a snapshot; try again later")),
            Status::Stopped | Status::Failed => session.force(),
        }
    }

    fn step(&self, vcpu: VcpuId, count: u64, cancel: &Cancel) -> Result<u64> {
        self.1.step(vcpu, count, cancel)
    }
}

/// Stops the VM, or has it stop as soon as the held events are answered.
fn stop(session: &mut Session) -> Result<()> {
    session.settle()?;
    // A monitor that waits for a verdict would not say: the VM has run until then.
    let waits = session.holds.as_ref().is_some_and(|holds| holds.monitor_waits());
    let mut status = if waits { Status::Running } else { session.status()? };
    if status == Status::Running && !session.stop()? {
        // Somebody else stopped it before us, or let it run after us.
        status = session.status()?;
        if status == Status::Running {
            return Err(busy("somebody else lets the VM run at this moment; try again"));
        }
    }
    match status {
        Status::Migrated => Err(migrated()),
        Status::Passing => Err(busy("QEMU sleeps, migrates or takes a snapshot; try again later")),
        Status::Running | Status::Stopped | Status::Failed => Ok(()),
    }
}

fn busy(why: &str) -> Error {
    Error::new(ErrorKind::Busy, "control execution", why)
}

/// Ends a pause that was begun in `epoch`, if it still counts.
fn resume(control: &Weak<Control>, epoch: u64) -> Result<()> {
    // The control's own end gives back what is owed.
    let Some(control) = control.upgrade() else { return Ok(()) };
    let mut session = control.lock();
    if session.epoch != epoch {
        return Ok(());
    }
    session.pauses = session.pauses.saturating_sub(1);
    if session.pauses > 0 { Ok(()) } else { session.release(PATIENCE) }
}
