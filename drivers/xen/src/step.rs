//! Steps of one vCPU while all others stand still.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use vmtree_api::{Cancel, Error, ErrorKind, Result, VcpuId};

use crate::error;
use crate::events::wire::{Request, Response, flag, reason};
use crate::owner::Owner;
use crate::world::World;

const OP: &str = "step";
/// How often the caller is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How long a vCPU may execute nothing before it counts as halted.
const HALTED: Duration = Duration::from_secs(2);

/// What the caller and the owner thread share.
#[derive(Default)]
pub struct Steps {
    state: Mutex<(u64, bool)>,
    changed: Condvar,
}

/// A vCPU on its way.
pub struct Walk {
    /// Which.
    pub vcpu: u32,
    left: u64,
    steps: Arc<Steps>,
}

impl Walk {
    /// Nobody goes on.
    pub fn end(&self) {
        self.steps.state.lock().1 = true;
        self.steps.changed.notify_all();
    }

    fn done(&mut self) {
        self.left = self.left.saturating_sub(1);
        self.steps.state.lock().0 += 1;
        self.steps.changed.notify_all();
    }
}

/// Executes up to `count` instructions on a vCPU of a paused domain.
///
/// # Errors
/// As [`vmtree_api::Execution::step`].
pub fn step(owner: &Owner, vcpu: VcpuId, count: u64, cancel: &Cancel) -> Result<u64> {
    let steps = Arc::new(Steps::default());
    if count == 0 {
        return owner.ask(OP, move |world| world.may_step(vcpu).map(|_| 0));
    }
    let shared = Arc::clone(&steps);
    owner.ask(OP, move |world| world.start_walk(vcpu, count, shared))?;
    let mut last = (0, Instant::now());
    loop {
        let mut state = steps.state.lock();
        if !state.1 {
            let _ = steps.changed.wait_for(&mut state, LOOK);
        }
        let (done, ended) = *state;
        drop(state);
        if done != last.0 {
            last = (done, Instant::now());
        }
        if ended {
            return Ok(done);
        }
        let halted = last.1.elapsed() > HALTED;
        if cancel.raised() || halted {
            owner.ask(OP, move |world| {
                // A vCPU that is held at an event of its step goes on once that is answered.
                let held = halted && world.events.held.contains_key(&vcpu.0);
                if !held {
                    world.end_walk();
                }
                Ok(())
            })?;
            last.1 = Instant::now();
        }
    }
}

impl World {
    fn may_step(&mut self, vcpu: VcpuId) -> Result<u32> {
        let vcpu = self.vcpu(OP, vcpu)?;
        let busy = |why: &str| Err(Error::new(ErrorKind::Busy, OP, why));
        self.look();
        if self.is_gone() {
            return Err(error::gone(OP));
        }
        if self.held_pauses == 0 || !self.info.paused {
            return busy("pause first");
        }
        if self.events.walk.is_some() {
            return busy("another step goes on");
        }
        if self.events.held.contains_key(&vcpu) {
            return busy(&format!("vCPU {vcpu} is held at an event; answer that first"));
        }
        Ok(vcpu)
    }

    fn start_walk(&mut self, vcpu: VcpuId, count: u64, steps: Arc<Steps>) -> Result<()> {
        let vcpu = self.may_step(vcpu)?;
        self.take_ring()?;
        self.still_others(OP, vcpu)?;
        self.events.walk = Some(Walk { vcpu, left: count, steps });
        if let Err(error) = self.sync_steps(OP).and_then(|()| self.let_walk()) {
            self.end_walk();
            return Err(error);
        }
        Ok(())
    }

    /// Takes our pause back, after which the one vCPU runs, unless another tool has paused the domain too.
    fn let_walk(&mut self) -> Result<()> {
        while self.pauses > 0 {
            self.unpause(OP)?;
        }
        self.look();
        if self.info.paused {
            let why = "another tool has paused the domain too, so no vCPU can step";
            return Err(Error::new(ErrorKind::Busy, OP, why));
        }
        Ok(())
    }

    /// The domain stands still again, if it still should, and all vCPUs are as before.
    pub fn end_walk(&mut self) {
        let Some(walk) = self.events.walk.take() else { return };
        let paused = self.pauses > 0 || self.pause(OP).is_ok();
        if paused {
            self.loose_others(OP);
        } else {
            self.drop_fence(OP);
        }
        if let Err(error) = self.sync_steps(OP) {
            log::error!("{error}");
        }
        if self.held_pauses == 0
            && let Err(error) = self.unpause(OP)
        {
            log::error!("{error}");
        }
        walk.end();
    }

    /// A step that the driver asked for itself; false where it is for those who watch.
    pub fn stepped_for_us(&mut self, request: &Request) -> bool {
        let vcpu = request.vcpu;
        let watched = self.events.armed.stepped(self.info.vcpus).contains(&vcpu);
        self.events.asked.remove(&vcpu);
        if self.events.lift.is_some_and(|lift| lift.vcpu == vcpu) {
            self.finish_lift();
        }
        let walks = self.events.walk.as_mut().filter(|walk| walk.vcpu == vcpu);
        let mut ended = false;
        if let Some(walk) = walks {
            walk.done();
            ended = walk.left == 0;
        }
        if ended {
            // Before the answer: the vCPU must not go on.
            self.end_walk();
        }
        if watched {
            return false;
        }
        let flags = request.flags & flag::VCPU_PAUSED;
        self.respond(Response { flags, vcpu, reason: reason::SINGLESTEP, ..Response::default() });
        true
    }
}
