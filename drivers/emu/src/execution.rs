//! Pause, resume and step.

use std::sync::{Arc, Weak};

use vmtree_api::{Cancel, Error, ErrorKind, Execution, Pause, Result, RunState, VcpuId};

use crate::cpu::Stepped;
use crate::machine::{Machine, State};

/// How many steps are done in one visit: others get in between.
const BATCH: u64 = 1024;

/// The execution of a machine.
pub struct Control(pub Arc<Machine>);

/// What a batch of steps came to.
enum Batch {
    /// All were done.
    Whole,
    /// The vCPU waits for what can't come.
    Stuck(u64),
    /// The vCPU was held at an event.
    Held(u64),
    /// The machine ended, for this reason.
    Ended(u64, String),
}

/// Ends a pause that was begun in `epoch`, if it still counts.
fn resume(machine: &Weak<Machine>, epoch: u64) -> Result<()> {
    let Some(machine) = machine.upgrade() else { return Ok(()) };
    let mut visit = machine.visit("resume")?;
    if visit.epoch == epoch {
        visit.pauses = visit.pauses.saturating_sub(1);
        visit.changed();
    }
    Ok(())
}

fn steps(state: &mut State, index: usize, count: u64) -> Batch {
    let mut done = 0;
    while done < count {
        match state.step(index) {
            Stepped::Ran | Stepped::Yielded => done += 1,
            Stepped::Held => return Batch::Held(done),
            Stepped::Dead => return Batch::Ended(done, state.end(index)),
            // A vCPU that waits for its own timer gets it at once: nobody waits in real time for a step.
            Stepped::Idle => match state.wakes(index) {
                Some(time) => state.skip(time),
                None => return Batch::Stuck(done),
            },
        }
    }
    Batch::Whole
}

impl Execution for Control {
    fn state(&self) -> Result<RunState> {
        let visit = self.0.visit("read state")?;
        Ok(if visit.pauses > 0 { RunState::Paused } else { RunState::Running })
    }

    fn pause(&self) -> Result<Pause> {
        let mut visit = self.0.visit("pause")?;
        visit.pauses += 1;
        visit.changed();
        let (machine, epoch) = (Arc::downgrade(&self.0), visit.epoch);
        Ok(Pause::new(move || resume(&machine, epoch)))
    }

    fn force_resume(&self) -> Result<()> {
        let mut visit = self.0.visit("resume")?;
        visit.epoch += 1;
        visit.pauses = 0;
        visit.changed();
        Ok(())
    }

    fn step(&self, vcpu: VcpuId, count: u64, cancel: &Cancel) -> Result<u64> {
        const OP: &str = "step";
        let mut done = 0;
        let mut begun = false;
        loop {
            let mut visit = self.0.visit(OP)?;
            let index = visit.index(OP, vcpu)?;
            if visit.pauses == 0 {
                // Someone else resumed it meanwhile: what was done, was done.
                return if done > 0 { Ok(done) } else { Err(Error::new(ErrorKind::Busy, OP, "pause first")) };
            }
            if done >= count || cancel.raised() {
                return Ok(done);
            }
            if visit.vcpus[index].trap.held.is_some() {
                if !begun {
                    let why = format!("vCPU {vcpu} is held at an event; answer that first");
                    return Err(Error::new(ErrorKind::Busy, OP, why));
                }
                visit.wait();
                continue;
            }
            begun = true;
            let batch = BATCH.min(count - done);
            match steps(&mut visit, index, batch) {
                Batch::Whole => done += batch,
                // An event of the step itself: its verdict is waited for, or room in the queue.
                Batch::Held(some) => {
                    done += some;
                    visit.wait();
                }
                Batch::Stuck(some) => return Ok(done + some),
                Batch::Ended(some, why) => {
                    drop(visit);
                    self.0.tell_end(&why);
                    return Ok(done + some);
                }
            }
        }
    }
}
