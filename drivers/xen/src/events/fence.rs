//! vCPUs that stand still while another one steps, where Xen can't pause one vCPU of several.
//!
//! All are put on a view on which nothing can be executed. The one that steps stops there at its next instruction, and is put
//! on its own view to execute it. Each other one stops there before its next instruction, and is answered once the steps
//! are over; one that has halted goes on doing that. Those that have not halted are stepped meanwhile, because Xen injects nothing
//! into such a one.

use std::collections::BTreeSet;

use vmtree_api::x86::Reg;
use vmtree_api::{Error, ErrorKind, RegValue, Result};

use super::answers::ports::RESUME;
use super::wire::{Cause, Request, Response, access, flag, reason};
use crate::again::again;
use crate::hypervisor::Ran;
use crate::world::World;

/// What keeps all but one vCPU from executing anything.
pub struct Fence {
    /// Xen's number of the view on which nothing is executed.
    view: u16,
    /// The one that may.
    free: u32,
    /// Where each belongs, by Xen's number of the view.
    homes: Vec<u16>,
    /// Those that are stepped for it.
    stepped: BTreeSet<u32>,
    /// Those that had RF in RFLAGS before: the processor sets it where it stops them.
    resume: BTreeSet<u32>,
    /// Answers for those that have stopped at it.
    stopped: Vec<Response>,
    /// What else the others were answered meanwhile.
    late: Vec<Response>,
}

impl Fence {
    /// Those that are stepped for it.
    pub fn stepped(&self) -> impl Iterator<Item = u32> {
        self.stepped.iter().copied()
    }

    /// Where a vCPU belongs that is on this one of Xen's views.
    #[must_use]
    pub fn home(&self, vcpu: u32, at: u16) -> Option<u16> {
        self.homes.get(vcpu as usize).copied().filter(|_| at == self.view)
    }

    /// Has a vCPU that is on this view go to another one later; false if it is elsewhere.
    pub fn send_home(&mut self, vcpu: u32, at: u16, to: u16) -> bool {
        let home = self.homes.get_mut(vcpu as usize).filter(|_| at == self.view);
        home.map(|home| *home = to).is_some()
    }

    /// Keeps an answer to a vCPU that stands still; gives back one to another.
    pub fn keep(&mut self, response: Response) -> Option<Response> {
        if response.vcpu == self.free {
            return Some(response);
        }
        self.late.push(response);
        None
    }
}

impl World {
    /// Has all vCPUs but one stand still; the domain is paused.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where a vCPU's view shows other frames; those of Xen. All is as before then.
    pub fn put_fence(&mut self, op: &'static str, free: u32) -> Result<()> {
        // What was raised before is no matter of this.
        while self.take_events() {}
        let vcpus = 0..self.info.vcpus;
        // There what page tables are is in the guest's own frames.
        if let Some(vcpu) = vcpus.clone().find(|vcpu| self.sees_other_frames(*vcpu)) {
            let why = format!(
                "this Xen can't pause one vCPU of several, and the way around that is not for vCPU {vcpu}, whose view shows other \
                 frames: put it on view 0"
            );
            return Err(Error::new(ErrorKind::Unsupported, op, why));
        }
        let view = self.no_fetch(op)?;
        let homes = vcpus.clone().map(|vcpu| self.belongs(vcpu)).collect();
        let stepped: BTreeSet<u32> = vcpus.filter(|vcpu| *vcpu != free && self.would_go_on(*vcpu)).collect();
        let mut resume = BTreeSet::new();
        for vcpu in &stepped {
            if self.general_now(*vcpu)?.rflags & RESUME != 0 {
                resume.insert(*vcpu);
            }
        }
        let placed = self.place_all(op, view);
        self.events.fence =
            Some(Fence { view, free, homes, stepped, resume, stopped: Vec::new(), late: Vec::new() });
        placed.and_then(|()| self.sync_steps(op)).inspect_err(|_| self.drop_fence(op))
    }

    fn sees_other_frames(&self, vcpu: u32) -> bool {
        // In the middle of an instruction on copies it sees those of its own view.
        let home = self.events.away.get(&vcpu).map(|away| away.home);
        let mut seen = [Some(self.views.of(self.belongs(vcpu))), home].into_iter().flatten();
        seen.any(|view| self.views.views.get(&view.0).is_some_and(|view| !view.shown.is_empty()))
    }

    /// Xen's view on which a vCPU executes its next instruction.
    fn belongs(&self, vcpu: u32) -> u16 {
        self.events.away.get(&vcpu).map_or_else(|| self.target(vcpu), |away| away.at)
    }

    /// Whether a vCPU would execute, and is not in the middle of a step already.
    fn would_go_on(&self, vcpu: u32) -> bool {
        let waits = self.events.held.contains_key(&vcpu) || self.events.away.contains_key(&vcpu);
        !waits && !matches!(again(|| self.xen.ran(vcpu)), Ok(Ran::Halted))
    }

    /// Lets all go again; the domain is paused.
    pub fn drop_fence(&mut self, op: &'static str) {
        if self.events.fence.is_none() {
            return;
        }
        // Who has stopped at it is told of before it is down.
        while self.take_events() {}
        let Some(fence) = self.events.fence.take() else { return };
        if let Err(error) = self.place(op, &fence.homes) {
            log::error!("vCPUs go back to their views by a step each: {error}");
            for (vcpu, home) in (0..).zip(&fence.homes) {
                self.views.pending.insert(vcpu, *home);
            }
            if let Err(error) = self.sync_steps(op) {
                log::error!("{error}");
            }
        }
        for response in fence.late {
            self.respond(response);
        }
        for mut response in fence.stopped {
            let vcpu = response.vcpu;
            response.view = fence.homes.get(vcpu as usize).copied();
            if !fence.resume.contains(&vcpu)
                && let Err(error) = self.clear_resume(op, vcpu)
            {
                log::warn!("vCPU {vcpu} has RF in RFLAGS for one instruction: {error}");
            }
            self.respond(response);
        }
    }

    fn clear_resume(&mut self, op: &'static str, vcpu: u32) -> Result<()> {
        let rflags = self.general_now(vcpu)?.rflags & !RESUME;
        self.put_registers(op, vcpu, &[(Reg::Rflags.id(), RegValue::Word(rflags))])
    }

    /// Whether a vCPU has stopped because nothing may be executed on its view; it is put where it belongs.
    pub fn was_fenced(&mut self, request: &Request) -> bool {
        let fetch = matches!(request.cause, Cause::Access { flags, .. } if flags & access::FETCH != 0);
        if !fetch || !self.events.windows.is_view(request.view) {
            return false;
        }
        let (flags, vcpu) = (request.flags & flag::VCPU_PAUSED, request.vcpu);
        let mut response = Response { flags, vcpu, reason: reason::SINGLESTEP, ..Response::default() };
        match &mut self.events.fence {
            Some(fence) if vcpu != fence.free => {
                fence.stopped.push(response);
                return true;
            }
            Some(fence) => response.view = fence.home(vcpu, request.view),
            None if self.views.pending.contains_key(&vcpu) => {}
            None => response.view = Some(self.views.xen(self.views.current(vcpu))),
        }
        self.respond(response);
        true
    }
}
