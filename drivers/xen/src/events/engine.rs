//! What Xen raises, on the owner thread: read, told or held, and what is nobody's let go at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use vmtree_api::events::{Event, EventKind, Verdict};
use vmtree_api::{Access, Result, ViewId};

use super::answers::dry::Dry;
use super::answers::ports::{Asked, Sent};
use super::answers::table::{self, Act};
use super::answers::unemulated::Lifted;
use super::armed::{Armed, Interest, written};
use super::decode;
use super::fence::Fence;
use super::queue::{Queue, Raised};
use super::window::Windows;
use super::wire::{Cause, General, Mode, Request, Response, Slot, flag, reason};
use crate::again::again;
use crate::hypervisor::Intercept;
use crate::step::Walk;
use crate::views::rules;
use crate::world::{World, note};

/// How many events are taken before jobs have their turn.
const TURN: u32 = 16;

/// A vCPU that waits for an answer.
#[derive(Clone, Debug)]
pub struct Parked {
    /// The number to answer it by.
    pub serial: u64,
    /// What Xen asked.
    pub request: Request,
    /// Its general registers then.
    pub general: General,
    /// How it read code then.
    pub mode: Mode,
    /// What it was told as.
    pub event: Event,
    /// Registers were written since.
    pub dirty: bool,
    /// RIP was set since.
    pub moved: bool,
    /// To deny it was refused once.
    pub refused: bool,
}

/// What would be lost if the ring went before the vCPU goes on.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// When it was answered.
    pub at: Instant,
    /// How long it had run then, where it was seen to stand still.
    pub ran: Option<u64>,
    /// Registers that Xen is to set.
    pub registers: Option<General>,
    /// A write that Xen is to do.
    pub write: Option<Cause>,
}

/// Events of a domain.
pub struct Engine {
    /// On the way to the pump.
    pub queue: Arc<Queue>,
    /// What is wanted.
    pub armed: Armed,
    /// The ring is ours.
    pub taken: bool,
    /// Writes take place after their answers.
    pub holds_writes: bool,
    /// What Xen is told to raise.
    pub set: BTreeSet<Intercept>,
    /// vCPUs that stop behind each instruction.
    pub stepped: BTreeSet<u32>,
    /// vCPUs that wait for an answer.
    pub held: BTreeMap<u32, Parked>,
    /// vCPUs that do one instruction on another of Xen's views.
    pub away: BTreeMap<u32, Away>,
    /// vCPUs that take their interrupts between two steps.
    pub windows: Windows,
    /// A vCPU that steps while the others stand still.
    pub walk: Option<Walk>,
    /// What has them stand still.
    pub fence: Option<Fence>,
    /// An access of which the frame's rights are lifted for one instruction.
    pub lift: Option<Lift>,
    /// The last answers.
    pub answered: BTreeMap<u32, Answered>,
    /// What the emulator was given, should it not be able to do it.
    pub emulated: BTreeMap<u32, (Parked, Act)>,
    /// Instructions on copies of what they touch.
    pub dry: Vec<Dry>,
    /// What the lift has beside its frame.
    pub lifted: Lifted,
    /// OUTs with other values, on their way.
    pub sent: Vec<Sent>,
    /// INs that a device model may have been asked for.
    pub asked: BTreeMap<u32, Asked>,
    serial: u64,
}

/// One instruction on another view.
#[derive(Clone, Copy, Debug)]
pub struct Away {
    /// Where, by Xen's number.
    pub at: u16,
    /// Where the vCPU belongs.
    pub home: ViewId,
    /// Xen does not put it back by itself.
    pub told: bool,
}

/// Rights that are lifted while one vCPU alone does one instruction.
#[derive(Clone, Copy, Debug)]
pub struct Lift {
    /// The vCPU.
    pub vcpu: u32,
    /// The frame.
    pub frame: u64,
    /// Since when.
    pub since: Instant,
}

impl Engine {
    /// Nothing is wanted.
    #[must_use]
    pub fn new(queue: Arc<Queue>) -> Self {
        Self {
            queue,
            armed: Armed::default(),
            taken: false,
            holds_writes: false,
            set: BTreeSet::new(),
            stepped: BTreeSet::new(),
            held: BTreeMap::new(),
            away: BTreeMap::new(),
            windows: Windows::default(),
            walk: None,
            fence: None,
            lift: None,
            answered: BTreeMap::new(),
            emulated: BTreeMap::new(),
            dry: Vec::new(),
            lifted: Lifted::default(),
            sent: Vec::new(),
            asked: BTreeMap::new(),
            serial: 0,
        }
    }

    /// The domain is gone.
    pub fn end(&mut self) {
        self.held.clear();
        self.fence = None;
        self.queue.end();
        if let Some(walk) = self.walk.take() {
            walk.end();
        }
    }
}

impl World {
    /// Takes some of what Xen has raised, and tells whether there may be more: others wait for their turn too.
    pub fn take_events(&mut self) -> bool {
        for _ in 0..TURN {
            // Where nothing is wanted any more nothing is queued, and every vCPU goes on.
            if !self.events.taken || !(self.events.queue.has_room() || self.events.armed.is_empty()) {
                return false;
            }
            match again(|| self.xen.request()) {
                Ok(Some(slot)) => self.take_one(&slot),
                Ok(None) => return false,
                Err(error) => {
                    log::error!("the event ring can't be read: {error}");
                    return false;
                }
            }
        }
        true
    }

    /// Wakes the vCPUs that have halted while they are stepped.
    pub fn wake_stepped(&mut self) {
        let stepped = self.events.stepped.iter().filter(|vcpu| !self.events.held.contains_key(vcpu));
        for vcpu in stepped.copied().collect::<Vec<u32>>() {
            if self.wake_halted(vcpu) {
                self.events.windows.hasten(vcpu);
            }
        }
    }

    fn take_one(&mut self, slot: &Slot) {
        match Request::read(slot) {
            Ok(request) if request.vcpu < self.info.vcpus => self.raised(&request, slot),
            Ok(request) => log::error!("Xen asks about vCPU {}, which is not there", request.vcpu),
            Err(unreadable) => {
                log::error!("Xen asks what is not known, and the vCPU goes on: {unreadable:?}");
                if unreadable.vcpu < self.info.vcpus {
                    let (flags, vcpu) = (unreadable.flags & flag::VCPU_PAUSED, unreadable.vcpu);
                    self.respond(Response { flags, vcpu, reason: unreadable.reason, ..Response::default() });
                }
            }
        }
    }

    fn raised(&mut self, request: &Request, slot: &Slot) {
        let vcpu = request.vcpu;
        // It has gone on since its last answer.
        self.events.answered.remove(&vcpu);
        self.views.set_at(vcpu, request.view);
        if let Some(wanted) = self.views.pending.get(&vcpu)
            && *wanted == request.view
        {
            self.views.pending.remove(&vcpu);
        }
        if request.cause != Cause::Unemulated {
            // The emulator could do it.
            self.events.emulated.remove(&vcpu);
        }
        let Some(request) = &self.close_window(request) else { return };
        if self.was_fenced(request) {
            return;
        }
        match request.cause {
            Cause::Step if self.stepped_for_us(request) => return,
            Cause::Unemulated => return self.unemulated(request),
            Cause::Io { .. } if self.has_come_back(request, slot) => return,
            _ => {}
        }
        let view = self.home(request);
        let general = General::of(slot);
        let event = decode::event(request, &general, view, self.allowed(request, view));
        let Some(mut event) = event else {
            log::error!("Xen asks what is no event, and the vCPU goes on: {request:?}");
            self.go_on(request, slot);
            return;
        };
        if let Cause::Io { string: true, .. } = request.cause {
            self.read_outs(&mut event, &Mode::of(slot), &general);
        }
        match self.events.armed.interest(&event) {
            Interest::Hold if request.waits() => self.hold(request, slot, event),
            Interest::None => {
                log::debug!("nobody wants {event:?}");
                self.go_on(request, slot);
            }
            _ => {
                self.go_on(request, slot);
                self.events.queue.push(Raised { event, serial: None });
            }
        }
    }

    /// The view that the vCPU of a request belongs to, also in the middle of an instruction on another one.
    fn home(&mut self, request: &Request) -> ViewId {
        match self.events.away.get(&request.vcpu) {
            Some(away) if away.at == request.view => away.home,
            // It is back.
            Some(away) if !away.told => {
                self.events.away.remove(&request.vcpu);
                self.views.of(request.view)
            }
            _ => self.views.of(request.view),
        }
    }

    /// The rights that the frame of an access has in its view.
    pub fn allowed(&self, request: &Request, view: ViewId) -> Access {
        let Cause::Access { gfn, .. } = request.cause else { return Access::ALL };
        self.views.views.get(&view.0).map_or(Access::ALL, |view| rules::access(view.rights.at(gfn)))
    }

    fn parked(&mut self, request: &Request, slot: &Slot, event: Event) -> Parked {
        self.events.serial += 1;
        let (serial, general, mode) = (self.events.serial, General::of(slot), Mode::of(slot));
        Parked { serial, request: *request, general, mode, event, dirty: false, moved: false, refused: false }
    }

    fn hold(&mut self, request: &Request, slot: &Slot, event: Event) {
        let parked = self.parked(request, slot, event);
        let serial = Some(parked.serial);
        self.events.held.insert(request.vcpu, parked);
        self.note_held();
        self.events.queue.push(Raised { event, serial });
    }

    /// Lets a vCPU go that nobody asked to hold.
    fn go_on(&mut self, request: &Request, slot: &Slot) {
        if !request.waits() {
            self.respond(Response {
                vcpu: request.vcpu,
                reason: reason::GUEST_REQUEST,
                ..Response::default()
            });
            return;
        }
        let view = self.home(request);
        let detail = vmtree_api::events::Detail::GuestRequest;
        let (kind, vcpu) = (EventKind::GuestRequest, vmtree_api::VcpuId(request.vcpu));
        // What it is told as does not matter: nobody is told.
        let event = Event { vcpu, view, kind, rip: request.rip, cr3: request.cr3, detail };
        let parked = self.parked(request, slot, event);
        if let Err(error) = self.perform(&parked, &Verdict::Continue) {
            log::error!("a vCPU could not go on as it should: {error}");
            let (flags, vcpu) = (flag::VCPU_PAUSED, request.vcpu);
            self.respond(Response { flags, vcpu, ..Response::default() });
        }
    }

    /// As [`World::note_ring`]; that it can't be done is only told.
    pub fn note_held(&self) {
        if let Err(error) = self.note_ring() {
            log::warn!("{error}");
        }
    }

    /// Notes what is lost with the ring: writes of held vCPUs, which Xen forgets, and RAX of those at an OUT of another value.
    ///
    /// # Errors
    /// It must not be done.
    pub fn note_ring(&self) -> Result<()> {
        if !self.events.taken {
            return Ok(());
        }
        let mut text = "ours".to_owned();
        for (vcpu, parked) in &self.events.held {
            if let Some(value) = written(&parked.event)
                && let Some(what) = table::name(&parked.request.cause)
            {
                text.push_str(&format!(" {vcpu}:{what}={value:#x}"));
            }
        }
        for out in self.outs() {
            text.push_str(&format!(" {out}"));
        }
        self.note(note::RING, &text)
    }

    /// Puts a response into the ring; one to a vCPU that is to stand still, later.
    pub fn respond(&mut self, response: Response) {
        let fence = self.events.fence.as_mut();
        let Some(mut response) = fence.map_or(Some(response), |fence| fence.keep(response)) else { return };
        let vcpu = response.vcpu;
        // Xen switches the view of a vCPU only where it waits.
        let waits = response.flags & flag::VCPU_PAUSED != 0;
        if waits && response.view.is_none() {
            let away = self.events.away.remove(&vcpu).map(|away| self.views.xen(away.home));
            response.view = self.views.pending.get(&vcpu).copied().or(away);
        }
        response.view = response.view.filter(|_| waits && self.views.on);
        if let Some(view) = response.view {
            self.views.set_at(vcpu, response.back.unwrap_or(view));
            self.views.pending.remove(&vcpu);
        }
        if let Err(error) = again(|| self.xen.respond(&response.slot())) {
            log::error!("vCPU {vcpu} can't be told to go on: {error}");
        }
        self.sweep_dry();
        if self.events.stepped.contains(&vcpu)
            && let Err(error) = self.sync_steps("watch")
        {
            log::error!("{error}");
        }
    }
}
