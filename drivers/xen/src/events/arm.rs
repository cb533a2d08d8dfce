//! Arming: the ring, what Xen is told to raise, and which vCPUs stop behind each instruction.

use std::collections::BTreeSet;
use std::time::Instant;

use vmtree_api::events::{EventKind, Wanted, Watch, Way};
use vmtree_api::{Error, ErrorKind, Result};

use super::armed::Armed;
use super::engine::Lift;
use crate::again::again;
use crate::error::{is, number};
use crate::hypervisor::Intercept;
use crate::views::rules::ALL;
use crate::world::{World, note};

const OP: &str = "watch";

/// What a ring that is taken means, and what to do.
fn taken() -> String {
    "the domain's event ring is taken: by another monitor, or by one that died, which Xen does not notice; end the other \
     one, or, if none runs, take its ring from it: xen:NAME,ring=take"
        .to_owned()
}

impl World {
    /// Replaces all that is wanted; on failure it is as before.
    ///
    /// # Errors
    /// As [`vmtree_api::events::EventSource::watch`].
    pub fn watch(&mut self, wanted: &Wanted) -> Result<()> {
        wanted.watches.iter().try_for_each(|watch| self.check_watch(watch))?;
        let before = std::mem::replace(&mut self.events.armed, Armed::new(wanted.clone()));
        if let Err(error) = self.arm() {
            self.events.armed = before;
            if let Err(error) = self.arm() {
                log::error!("what was armed before could not be armed anew: {error}");
            }
            return Err(error);
        }
        self.settle_ring();
        Ok(())
    }

    fn check_watch(&self, watch: &Watch) -> Result<()> {
        if watch.kind == EventKind::Slat {
            let why = "slat is watched by rules: its events are of ranges of frames";
            return Err(Error::new(ErrorKind::Invalid, OP, why));
        }
        if let Some(way) = watch.way.filter(|way| !watch.kind.ways().contains(way)) {
            let why = format!("{} does not happen in the way \"{}\"", watch.kind, way.name());
            return Err(Error::new(ErrorKind::Unsupported, OP, why));
        }
        if watch.kind == EventKind::Msr && watch.way == Some(Way::From) {
            return Err(Error::new(ErrorKind::Unsupported, OP, "Xen does not tell of reads of MSRs"));
        }
        if let Some(index) = watch.index.filter(|_| watch.kind == EventKind::Msr) {
            let told = matches!(index, 0..=0x1fff | 0x4000_0000..=0x4000_1fff | 0xc000_0000..=0xc000_1fff);
            if !told {
                let why = format!(
                    "Xen can't tell of MSR {index:#x}: only of those up to 0x1fff, and from 0x40000000 and 0xc0000000 on"
                );
                return Err(Error::new(ErrorKind::Unsupported, OP, why));
            }
        }
        watch.vcpu.map_or(Ok(0), |vcpu| self.vcpu(OP, vcpu)).map(drop)
    }

    fn arm(&mut self) -> Result<()> {
        if !self.events.armed.is_empty() {
            self.take_ring()?;
        }
        if self.events.armed.holds_writes() && !self.events.holds_writes {
            let held = self.xen.hold_writes();
            held.map_err(|error| self.refused(OP, "Xen does not let writes wait", error))?;
            self.events.holds_writes = true;
        }
        let rules = self.events.armed.wanted().rules.clone();
        self.set_rules(&rules)?;
        let mut wanted = self.events.armed.intercepts();
        if !rules.is_empty() {
            wanted.insert(Intercept::Unemulated);
        }
        self.set_intercepts(wanted)?;
        self.sync_steps(OP)
    }

    fn set_intercepts(&mut self, mut wanted: BTreeSet<Intercept>) -> Result<()> {
        if self.needs_steps() {
            wanted.insert(Intercept::Step);
        }
        if self.waits_for_out() {
            wanted.insert(Intercept::Io);
        }
        let gone: Vec<Intercept> = self.events.set.difference(&wanted).copied().collect();
        let new: Vec<Intercept> = wanted.difference(&self.events.set).copied().collect();
        let change = |world: &mut Self| {
            gone.iter().try_for_each(|gone| world.set_intercept(*gone, false))?;
            new.iter().try_for_each(|new| world.set_intercept(*new, true))
        };
        // Nothing may happen between the one and the other of the same register.
        if gone.is_empty() || new.is_empty() { change(self) } else { self.paused(OP, change) }
    }

    /// Has Xen raise something, or no more.
    ///
    /// # Errors
    /// Those of Xen.
    pub fn set_intercept(&mut self, what: Intercept, on: bool) -> Result<()> {
        let set = || self.xen.set(what, on);
        match if on { set() } else { again(set) } {
            Err(error) if !is(&error, number::EEXIST) => {
                return Err(self.refused(
                    OP,
                    format!("Xen does not {} {what:?}", if on { "arm" } else { "disarm" }),
                    error,
                ));
            }
            _ => {}
        }
        if on {
            self.events.set.insert(what)
        } else {
            self.events.set.remove(&what)
        };
        Ok(())
    }

    /// Takes the domain's ring, if it is not ours yet.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] where somebody has it.
    pub fn take_ring(&mut self) -> Result<()> {
        if self.events.taken {
            return Ok(());
        }
        self.note(note::RING, "ours")?;
        if let Err(error) = self.xen.take() {
            self.undo.done(note::RING);
            if is(&error, number::EBUSY) {
                return Err(Error::new(ErrorKind::Busy, "take the event ring", taken()).caused_by(error));
            }
            return Err(self.refused("take the event ring", "Xen does not give it", error));
        }
        self.events.taken = true;
        // Its page was taken out of the domain, at which Xen may have forgotten what views show.
        self.restore_views();
        Ok(())
    }

    /// Takes the ring from whoever has it, and lets the vCPUs go that wait in it.
    ///
    /// # Errors
    /// Those of Xen.
    pub fn free_ring(&mut self) -> Result<()> {
        const OP: &str = "take the event ring";
        self.paused(OP, |world| {
            let freed = crate::recover::free_ring(&mut *world.xen, world.info.vcpus, &[], &[], 0..0);
            freed.map_err(|error| world.refused(OP, "Xen does not give it", error))
        })
    }

    /// Whether the driver itself needs vCPUs to be stepped.
    pub fn needs_steps(&self) -> bool {
        let events = &self.events;
        let asked = events.asked.values().any(|asked| asked.stepped);
        let ours = asked || !self.views.pending.is_empty() || events.away.values().any(|away| away.told);
        ours || events.walk.is_some() || events.lift.is_some()
    }

    /// Has those vCPUs stop behind each instruction that should, and no others.
    ///
    /// # Errors
    /// Those of Xen.
    pub fn sync_steps(&mut self, op: &'static str) -> Result<()> {
        let mut wanted = self.events.armed.stepped(self.info.vcpus);
        wanted.extend(self.views.pending.keys());
        wanted.extend(self.events.away.iter().filter(|(_, away)| away.told).map(|(vcpu, _)| vcpu));
        wanted.extend(self.events.asked.iter().filter(|(_, asked)| asked.stepped).map(|(vcpu, _)| vcpu));
        wanted.extend(self.events.walk.iter().map(|walk| walk.vcpu));
        wanted.extend(self.events.fence.iter().flat_map(|fence| fence.stepped()));
        wanted.extend(self.events.lift.iter().map(|lift| lift.vcpu));
        if !wanted.is_empty() && !self.events.set.contains(&Intercept::Step) {
            self.take_ring()?;
            self.set_intercept(Intercept::Step, true)?;
        }
        for vcpu in 0..self.info.vcpus {
            let (is, should) = (self.events.stepped.contains(&vcpu), wanted.contains(&vcpu));
            if is == should {
                continue;
            }
            let set = || self.xen.single_step(vcpu, should);
            if let Err(error) = if should { set() } else { again(set) } {
                return Err(self.refused(op, format!("Xen does not step vCPU {vcpu}"), error));
            }
            if should {
                self.events.stepped.insert(vcpu);
            } else {
                self.events.stepped.remove(&vcpu);
                self.wake_halted(vcpu);
            }
        }
        Ok(())
    }

    /// Lifts the rights of a frame while one vCPU alone does one instruction; for domains without alternate views.
    ///
    /// # Errors
    /// The rights stay.
    pub fn lift_frame(&mut self, vcpu: u32, frame: u64) -> Result<()> {
        if self.events.lift.is_some_and(|lift| lift.vcpu == vcpu) {
            // Its instruction comes to several frames.
            let lifted = self.xen.set_access(0, frame..frame + 1, ALL);
            lifted.map_err(|error| self.refused(OP, "Xen does not lift the rights of a frame", error))?;
            self.events.lifted.frames.push(frame);
            return Ok(());
        }
        self.finish_lift();
        self.pause(OP)?;
        let still = if self.alone {
            self.still_others(OP, vcpu)
        } else {
            log::warn!("other vCPUs may access frame {frame:#x} unseen, for an instruction of vCPU {vcpu}");
            Ok(())
        };
        let lifted = still.and_then(|()| {
            self.xen
                .set_access(0, frame..frame + 1, ALL)
                .map_err(|error| self.refused(OP, "Xen does not lift the rights of a frame", error))
        });
        if let Err(error) = lifted {
            self.loose_others(OP);
            let _ = self.unpause(OP);
            return Err(error);
        }
        self.events.lift = Some(Lift { vcpu, frame, since: Instant::now() });
        let stepping = self.sync_steps(OP);
        if stepping.is_err() {
            self.restore_lift();
        }
        self.unpause(OP).and(stepping)
    }

    /// Puts the rights of a lifted frame back; the domain is paused.
    fn restore_lift(&mut self) {
        let Some(lift) = self.events.lift.take() else { return };
        self.put_kept();
        for frame in std::mem::take(&mut self.events.lifted.frames).into_iter().chain([lift.frame]) {
            let access = self.views.views.get(&0).map_or(ALL, |view| view.rights.at(frame));
            if let Err(error) = again(|| self.xen.set_access(0, frame..frame + 1, access)) {
                log::error!("the rights of frame {frame:#x} are lost: {error}");
            }
        }
        self.loose_others(OP);
        let _ = self.sync_steps(OP);
    }

    /// The same, whenever it is.
    pub fn finish_lift(&mut self) {
        if self.events.lift.is_some() && self.pause(OP).is_ok() {
            self.restore_lift();
            let _ = self.unpause(OP);
        }
    }

    /// Undoes all of it, with the held vCPUs let go.
    pub fn close_events(&mut self) {
        self.events.armed = Armed::default();
        self.end_walk();
        let held: Vec<(u32, u64)> =
            self.events.held.iter().map(|(vcpu, parked)| (*vcpu, parked.serial)).collect();
        for (vcpu, serial) in held {
            if let Err(error) = self.answer(vcpu, serial, &vmtree_api::events::Verdict::Continue) {
                log::error!("{error}");
            }
        }
        self.finish_lift();
        self.finish_dry();
        if let Err(error) = self.set_rules(&[]) {
            log::error!("{error}");
        }
        self.views.pending.clear();
        self.events.away.clear();
        self.events.asked.clear();
        if let Err(error) = self.sync_steps(OP) {
            log::error!("{error}");
        }
        if self.events.taken {
            self.give_ring_back();
        }
    }
}
