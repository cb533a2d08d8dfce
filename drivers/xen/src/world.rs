//! All that the owner thread holds: Xen, and what was done to the domain by us.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vmtree_api::undo::Undo;
use vmtree_api::{ErrorKind, Host, Result, VcpuId};

use crate::again::again;
use crate::error::{self, is, number, refused};
use crate::events::engine::Engine;
use crate::hypervisor::{DomainInfo, Hypervisor};
use crate::memory::DomainMemory;
use crate::views::book::ViewBook;

/// What other threads look at.
pub struct Shared {
    /// The domain is gone.
    pub ended: AtomicBool,
    /// Who is told of it.
    pub host: Arc<dyn Host>,
    /// The domain's memory.
    pub memory: Arc<DomainMemory>,
}

/// The world of one domain.
pub struct World {
    /// Xen.
    pub xen: Box<dyn Hypervisor>,
    /// As it was when last looked at.
    pub info: DomainInfo,
    /// What the guardian would have to undo.
    pub undo: Undo,
    /// How many pauses of Xen are ours.
    pub pauses: u32,
    /// Our own pauses that are held, by the users of the driver.
    pub held_pauses: u32,
    /// Grows when pauses become void.
    pub epoch: u64,
    /// vCPUs that are paused each by itself.
    pub still: Vec<u32>,
    /// One vCPU can run alone by Xen's own pauses.
    pub alone: bool,
    /// vCPUs can be stepped.
    pub steps: bool,
    /// Events.
    pub events: Engine,
    /// Views and rights.
    pub views: ViewBook,
    /// What other threads look at.
    pub shared: Arc<Shared>,
}

/// Names of what is noted.
pub mod note {
    /// Pauses of Xen that are ours.
    pub const PAUSED: &str = "paused";
    /// vCPUs that are paused each by itself.
    pub const STILL: &str = "still";
    /// The ring is ours.
    pub const RING: &str = "ring";
    /// Alternate views are on by us.
    pub const VIEWS: &str = "views";
    /// Pages that we added.
    pub const PAGES: &str = "pages";
    /// Frames whose rights we took, of a domain without alternate views.
    pub const RIGHTS: &str = "rights";
}

impl World {
    /// The world of a domain that is there.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`].
    pub fn new(xen: Box<dyn Hypervisor>, undo: Undo, shared: Arc<Shared>) -> Result<Self> {
        const OP: &str = "open xen";
        let info = xen.info().map_err(|error| refused(OP, "Xen does not tell of the domain", error))?;
        let info = info.filter(|info| !info.dying).ok_or_else(|| error::gone(OP))?;
        let (pauses, held_pauses, epoch, still) = (0, 0, 0, Vec::new());
        let events = Engine::new(Arc::default());
        let mut views = ViewBook::new(info.vcpus);
        let on = xen.views();
        views.can = on.is_ok() && xen.rights().is_ok();
        views.found = on.is_ok_and(|on| on);
        Ok(Self {
            xen,
            info,
            undo,
            pauses,
            held_pauses,
            epoch,
            still,
            alone: true,
            steps: false,
            events,
            views,
            shared,
        })
    }

    /// Notes what would have to be undone in this domain if we were killed.
    ///
    /// # Errors
    /// It must not be done.
    pub fn note(&self, what: &'static str, how: &str) -> Result<()> {
        self.undo.note(what, &format!("{} {how}", self.info.domid))
    }

    /// Whether the domain is gone.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire)
    }

    /// Looks whether the domain is still there, and as it was.
    pub fn look(&mut self) {
        if self.is_gone() {
            return;
        }
        self.shared.memory.mappings().drop_old();
        match self.xen.info() {
            Ok(Some(info)) if !info.dying => {
                let moved = info.pages != self.info.pages;
                self.info = info;
                if moved {
                    self.look_for_memory();
                    self.restore_views();
                }
            }
            Ok(_) => self.end("the domain was destroyed"),
            Err(error) => log::error!("Xen does not tell of the domain: {error}"),
        }
    }

    /// The highest frame that has something; of a PV guest that is the guest's to say.
    ///
    /// # Errors
    /// Xen does not tell.
    pub fn highest(&self) -> io::Result<u64> {
        if self.info.hvm { self.xen.highest() } else { Ok(0) }
    }

    /// Looks where the domain's memory lies now; on a thread of its own, for Xen is asked of each frame.
    fn look_for_memory(&mut self) {
        let memory = Arc::clone(&self.shared.memory);
        memory.mappings().drop_all();
        let info = self.info;
        let look = move |highest| {
            if let Err(error) = memory.refresh(highest, &info) {
                log::error!("{error}");
            }
        };
        let started = match self.highest() {
            Ok(highest) => {
                thread::Builder::new().name("xen-memory".to_owned()).spawn(move || look(highest)).map(drop)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            log::error!("the memory map may be old: {error}");
        }
    }

    fn end(&mut self, why: &str) {
        self.shared.ended.store(true, Ordering::Release);
        // Xen keeps the pages of a dead domain for as long as somebody has them mapped.
        self.shared.memory.end();
        self.events.end();
        self.shared.host.ended(why);
    }

    /// An error of Xen's, with the domain's end noticed.
    pub fn refused(
        &mut self,
        op: &'static str,
        what: impl Into<String>,
        error: io::Error,
    ) -> vmtree_api::Error {
        self.look();
        if self.is_gone() { error::gone(op) } else { refused(op, what, error) }
    }

    /// Checks a vCPU's number.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn vcpu(&self, op: &'static str, vcpu: VcpuId) -> Result<u32> {
        if vcpu.0 < self.info.vcpus { Ok(vcpu.0) } else { Err(error::no_vcpu(op, vcpu.0, self.info.vcpus)) }
    }

    /// One more pause of Xen.
    ///
    /// # Errors
    /// The domain runs on.
    pub fn pause(&mut self, op: &'static str) -> Result<()> {
        self.note(note::PAUSED, &(self.pauses + 1).to_string())?;
        if let Err(error) = again(|| self.xen.pause()) {
            self.note_pauses();
            return Err(self.refused(op, "Xen does not pause the domain", error));
        }
        self.pauses += 1;
        Ok(())
    }

    /// One pause of ours less. That somebody else has taken it back already is no error.
    ///
    /// # Errors
    /// The domain stands still as before.
    pub fn unpause(&mut self, op: &'static str) -> Result<()> {
        if self.pauses == 0 {
            return Ok(());
        }
        match again(|| self.xen.unpause()) {
            Err(error) if !is(&error, number::EINVAL) => {
                let error = self.refused(op, "Xen does not resume the domain", error);
                if error.kind() != ErrorKind::Gone {
                    return Err(error);
                }
            }
            _ => {}
        }
        self.pauses -= 1;
        self.note_pauses();
        Ok(())
    }

    fn note_pauses(&self) {
        if self.pauses == 0 {
            self.undo.done(note::PAUSED);
        } else if let Err(error) = self.note(note::PAUSED, &self.pauses.to_string()) {
            log::warn!("{error}");
        }
    }

    /// Does something while the domain stands still.
    ///
    /// # Errors
    /// Those of the pause and of `act`.
    pub fn paused<T>(&mut self, op: &'static str, act: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.pause(op)?;
        let result = act(self);
        match self.unpause(op) {
            Ok(()) => result,
            Err(error) => result.and(Err(error)),
        }
    }

    /// Lets one vCPU alone run, while the others are paused or behind a fence: the domain must be paused.
    ///
    /// # Errors
    /// None of them stands still by us then.
    pub fn still_others(&mut self, op: &'static str, vcpu: u32) -> Result<()> {
        if !self.alone {
            return self.put_fence(op, vcpu);
        }
        let others: Vec<u32> = (0..self.info.vcpus).filter(|other| *other != vcpu).collect();
        let all: Vec<String> = others.iter().map(u32::to_string).collect();
        self.note(note::STILL, &all.join(" "))?;
        for other in others {
            if let Err(error) = self.xen.pause_vcpu(other) {
                self.loose_others(op);
                return Err(self.refused(op, format!("Xen does not pause vCPU {other} alone"), error));
            }
            self.still.push(other);
        }
        Ok(())
    }

    /// Ends [`World::still_others`]; the domain must be paused.
    pub fn loose_others(&mut self, op: &'static str) {
        self.drop_fence(op);
        for other in std::mem::take(&mut self.still) {
            if let Err(error) = again(|| self.xen.unpause_vcpu(other)) {
                log::error!("{op}: vCPU {other} stays paused: {error}");
            }
        }
        self.undo.done(note::STILL);
    }

    /// Undoes all.
    pub fn close(&mut self) {
        const OP: &str = "close xen";
        if self.is_gone() {
            return;
        }
        self.close_events();
        self.close_views();
        if !self.still.is_empty() && self.pause(OP).is_ok() {
            self.loose_others(OP);
        }
        while self.pauses > 0 {
            if let Err(error) = self.unpause(OP) {
                log::error!("{error}");
                break;
            }
        }
    }
}
