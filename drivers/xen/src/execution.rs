//! Pause, resume and step, by Xen's own counts of pauses, beside other tools.

use std::sync::{Arc, Weak};

use vmtree_api::{Cancel, Error, ErrorKind, Execution, Missing, Pause, Result, RunState, VcpuId};

use crate::owner::{Owner, ask};
use crate::world::World;

/// How many pauses of others are taken back at most.
const MANY: usize = 256;

/// The execution of a domain.
pub struct Vm {
    /// Who does it.
    pub owner: Arc<Owner>,
    /// Whether Xen can step it, or why not.
    pub steps: std::result::Result<(), Missing>,
}

/// Ends a pause that was begun in `epoch`, if it still counts.
fn resume(owner: &Weak<Owner>, epoch: u64) -> Result<()> {
    const OP: &str = "resume";
    // The owner's own end gives back what is owed.
    if owner.strong_count() == 0 {
        return Ok(());
    }
    ask(owner, OP, move |world| {
        if world.epoch != epoch {
            return Ok(());
        }
        world.held_pauses = world.held_pauses.saturating_sub(1);
        if world.held_pauses > 0 { Ok(()) } else { world.unpause(OP) }
    })
}

fn paused(world: &mut World, op: &'static str) -> Result<bool> {
    world.look();
    if world.is_gone() { Err(crate::error::gone(op)) } else { Ok(world.info.paused) }
}

impl Execution for Vm {
    fn state(&self) -> Result<RunState> {
        const OP: &str = "read state";
        let paused = self.owner.ask(OP, |world| paused(world, OP))?;
        Ok(if paused { RunState::Paused } else { RunState::Running })
    }

    fn pause(&self) -> Result<Pause> {
        const OP: &str = "pause";
        let epoch = self.owner.ask(OP, |world| {
            if world.held_pauses == 0 {
                world.pause(OP)?;
            }
            world.held_pauses += 1;
            Ok(world.epoch)
        })?;
        let owner = Arc::downgrade(&self.owner);
        // Any tool on the host can take a pause back.
        Ok(Pause::new(move || resume(&owner, epoch)).shared())
    }

    fn force_resume(&self) -> Result<()> {
        const OP: &str = "resume";
        self.owner.ask(OP, |world| {
            world.epoch += 1;
            world.held_pauses = 0;
            world.unpause(OP)?;
            for _ in 0..MANY {
                if !paused(world, OP)? {
                    return Ok(());
                }
                if let Err(error) = world.xen.unpause() {
                    return Err(world.refused(OP, "Xen does not resume the domain", error));
                }
            }
            Err(Error::new(ErrorKind::Busy, OP, "other tools pause the domain again and again"))
        })
    }

    fn steps(&self) -> std::result::Result<(), Missing> {
        self.steps.clone()
    }

    fn step(&self, vcpu: VcpuId, count: u64, cancel: &Cancel) -> Result<u64> {
        if let Err(missing) = self.steps() {
            return Err(Error::new(ErrorKind::Unsupported, "step", missing.to_string()));
        }
        crate::step::step(&self.owner, vcpu, count, cancel)
    }
}
