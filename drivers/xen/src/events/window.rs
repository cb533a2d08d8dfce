//! Instants at which a stepped vCPU takes its interrupts.
//!
//! Xen injects nothing into a vCPU that it steps (vmx_intr_assist, xen/arch/x86/hvm/vmx/intr.c). So now and then one that is stepped
//! for somebody goes on without a step, but on a view on which nothing can be executed: it takes what is pending, and stops at the
//! next instruction before that is executed. Where nothing was pending, that is the one it stood at.
//!
//! Not at every step: the ticks of a guest that a step slows down a thousandfold would leave it no time for anything else. But behind
//! each HLT, which Xen goes past where something is pending.

use std::collections::BTreeMap;

use iced_x86::Mnemonic;
use vmtree_api::{Result, ViewId};

use super::engine::{Away, Parked};
use super::wire::{Cause, Request, Response, access, flag, reason};
use crate::views::rules::ALL;
use crate::world::World;

const OP: &str = "watch";
/// How many instructions that an interrupt could come before are stepped from one window to the next. Handlers, which hold
/// interrupts off, don't count.
const EVERY: u32 = 256;
/// RFLAGS.IF.
const INTERRUPTS: u64 = 1 << 9;
/// The rights of the view on which nothing is executed.
const NO_FETCH: u8 = ALL & !4;

/// Those of all vCPUs.
#[derive(Default)]
pub struct Windows {
    /// Xen's number of the view on which nothing is executed.
    view: Option<u16>,
    /// There is none to be had.
    refused: bool,
    /// vCPUs that are about to take what is pending.
    open: BTreeMap<u32, Window>,
    /// What each has done since its last one.
    done: BTreeMap<u32, Done>,
}

/// The steps of a vCPU.
#[derive(Clone, Copy, Default)]
struct Done {
    /// How many there were that an interrupt could come before.
    count: u32,
    /// The last one was.
    open: bool,
}

/// One vCPU's.
#[derive(Clone, Copy)]
struct Window {
    /// Where it stood.
    rip: u64,
    /// The view that it belongs to.
    home: ViewId,
}

impl Windows {
    /// The view that a vCPU belongs to whose window is open.
    #[must_use]
    pub fn home(&self, vcpu: u32) -> Option<ViewId> {
        self.open.get(&vcpu).map(|window| window.home)
    }

    /// Whether one is open.
    #[must_use]
    pub fn any(&self) -> bool {
        !self.open.is_empty()
    }

    /// Whether one of Xen's views is used for them.
    #[must_use]
    pub fn has_view(&self) -> bool {
        self.view.is_some()
    }

    /// Whether it is this one.
    #[must_use]
    pub fn is_view(&self, xen: u16) -> bool {
        self.view == Some(xen)
    }

    /// What this vCPU waits for is an interrupt.
    pub fn hasten(&mut self, vcpu: u32) {
        self.done.entry(vcpu).or_default().count = EVERY;
    }

    /// All vCPUs were put on other views.
    pub fn clear(&mut self) {
        self.open.clear();
    }
}

impl World {
    /// Has a vCPU that was stepped take its interrupts before the next step, if it is time.
    pub fn open_window(&mut self, parked: &Parked, response: &mut Response) {
        let (vcpu, home) = (response.vcpu, parked.event.view);
        if !self.views.can {
            return;
        }
        if self.is_about_to_halt(parked) {
            self.events.windows.hasten(vcpu);
            return;
        }
        let events = &self.events;
        let due = events.windows.done.get(&vcpu).is_some_and(|done| done.count >= EVERY);
        let elsewhere = events.away.contains_key(&vcpu) || self.views.pending.contains_key(&vcpu);
        let alone = events.walk.is_some() || events.lift.is_some();
        // What is pushed in a window goes to the guest's own frames.
        let own_frames = self.views.views.get(&home.0).is_some_and(|view| view.shown.is_empty());
        let can = own_frames && events.stepped.contains(&vcpu);
        if !can || !due || elsewhere || alone || parked.moved {
            return;
        }
        if self.events.windows.refused {
            return;
        }
        let view = match self.no_fetch(OP) {
            Ok(view) => view,
            Err(error) => {
                log::warn!("vCPUs take no interrupts while they are stepped: {error}");
                self.events.windows.refused = true;
                return;
            }
        };
        if let Err(error) = self.xen.single_step(vcpu, false) {
            log::error!("vCPU {vcpu} takes no interrupts while it is stepped: {error}");
            return;
        }
        self.events.stepped.remove(&vcpu);
        self.events.windows.open.insert(vcpu, Window { rip: parked.request.rip, home });
        response.view = Some(view);
    }

    /// Counts a step, and tells whether the next one is the HLT behind an STI, before which no interrupt comes.
    fn is_about_to_halt(&mut self, parked: &Parked) -> bool {
        let open = parked.general.rflags & INTERRUPTS != 0;
        let done = self.events.windows.done.entry(parked.request.vcpu).or_default();
        let first = !std::mem::replace(&mut done.open, open) && open;
        done.count = done.count.saturating_add(u32::from(open));
        let next = || self.instruction(parked.event.view, &parked.mode, parked.request.rip);
        first && next().is_some_and(|next| next.mnemonic() == Mnemonic::Hlt)
    }

    /// The view on which nothing is executed.
    ///
    /// # Errors
    /// There is none to be had.
    pub fn no_fetch(&mut self, op: &'static str) -> Result<u16> {
        if let Some(view) = self.events.windows.view {
            return Ok(view);
        }
        let view = self.new_view(op, NO_FETCH)?;
        self.events.windows.view = Some(view);
        Ok(view)
    }

    /// What a request is to those who watch: the end of a window is a step if it led elsewhere, else nothing.
    pub fn close_window(&mut self, request: &Request) -> Option<Request> {
        let vcpu = request.vcpu;
        let Some(window) = self.events.windows.open.remove(&vcpu) else { return Some(*request) };
        self.events.windows.done.remove(&vcpu);
        let there = Some(request.view) == self.events.windows.view;
        if there {
            // The answer puts it back.
            self.events.away.insert(vcpu, Away { at: request.view, home: window.home, told: true });
        }
        if let Err(error) = self.sync_steps(OP) {
            log::error!("{error}");
        }
        if !there || !matches!(request.cause, Cause::Access { flags, .. } if flags & access::FETCH != 0) {
            return Some(*request);
        }
        if request.rip != window.rip && self.events.armed.stepped(self.info.vcpus).contains(&vcpu) {
            return Some(Request { cause: Cause::Step, ..*request });
        }
        let flags = request.flags & flag::VCPU_PAUSED;
        self.respond(Response { flags, vcpu, reason: reason::SINGLESTEP, ..Response::default() });
        None
    }

    /// Gives the view back once nobody is stepped.
    pub fn settle_windows(&mut self) {
        let Some(view) = self.events.windows.view else {
            self.events.windows.refused &= !self.events.stepped.is_empty();
            return;
        };
        let used = self.events.windows.any() || self.events.walk.is_some();
        let used = used || !self.events.armed.stepped(self.info.vcpus).is_empty();
        // Busy, it is tried again.
        if !used && (!self.views.on || self.xen.destroy(view).is_ok()) {
            self.events.windows = Windows::default();
        }
    }
}
