//! Instructions without their writes, or with other data, where Xen's emulator can't do that: the vCPU itself does one step on
//! a view of Xen's that shows what its own does, with all rights, and copies in the place of the frames that are written or
//! read. Behind the step view and copies go.

use std::thread;
use std::time::{Duration, Instant};

use vmtree_api::x86::Reg;
use vmtree_api::{PAGE_SIZE, RegValue, Result, ViewId};

use super::table::Act;
use super::touched::Part;
use crate::again::again;
use crate::error::refused;
use crate::events::engine::{Away, Parked};
use crate::events::wire::Response;
use crate::registers::convert;
use crate::views::rules::ALL;
use crate::world::World;

const OP: &str = "answer";
/// How long such a step may take before the ring is given back.
const PATIENCE: Duration = Duration::from_millis(200);

/// One step on copies.
#[derive(Clone, Debug)]
pub struct Dry {
    vcpu: u32,
    /// Xen's view that shows them.
    view: u16,
    /// The view that it shows else.
    like: ViewId,
    /// Each frame, and the page in its place.
    pages: Vec<(u64, u64)>,
    /// The instruction, and the one behind it where it must not be done with its writes.
    at: u64,
    past: Option<u64>,
    /// It is to do its writes, as far as the rules let it (`guarded`).
    guards: bool,
}

impl World {
    /// What is touched, and what is put there.
    ///
    /// # Errors
    /// It can't be told.
    pub fn apart(&mut self, parked: &Parked, act: Act) -> Result<(Vec<Part>, Option<[u8; 16]>)> {
        let general = self.general(parked, parked.dirty)?;
        Ok(match act {
            Act::DryWith(value) => (self.read(parked, &general)?, Some(value)),
            _ => (self.written(parked, &general)?, None),
        })
    }

    /// Has the vCPU do its instruction on copies.
    ///
    /// # Errors
    /// Nothing is changed: [`vmtree_api::ErrorKind::NoSpace`] where there is no view or page for it.
    pub fn step_dry(&mut self, parked: &Parked, act: Act, response: &mut Response) -> Result<()> {
        let (parts, value) = self.apart(parked, act)?;
        let (vcpu, like, at) = (parked.request.vcpu, parked.event.view, parked.request.rip);
        let past = self.instruction(like, &parked.mode, at).map(|it| it.next_ip());
        let past = past.filter(|_| value.is_none());
        let view = self.new_view(OP, ALL)?;
        self.events.dry.push(Dry { past, guards: false, ..Dry::guard(vcpu, view, like, at) });
        let filled = self.fill(view, like, &parts, value);
        let stepped = filled.and_then(|()| self.depart(vcpu, view, like, response));
        stepped.inspect_err(|_| self.sweep_dry())
    }

    /// Has a vCPU do its instruction on a new view.
    ///
    /// # Errors
    /// Nothing is changed.
    pub fn depart(&mut self, vcpu: u32, view: u16, like: ViewId, response: &mut Response) -> Result<()> {
        let back = self.views.pending.get(&vcpu).copied().unwrap_or_else(|| self.views.xen(like));
        let away = Away { at: view, home: self.views.of(back), told: true };
        let before = self.events.away.insert(vcpu, away);
        if let Err(error) = self.sync_steps(OP) {
            self.events.away.remove(&vcpu);
            self.events.away.extend(before.map(|away| (vcpu, away)));
            return Err(error);
        }
        self.views.pending.remove(&vcpu);
        (response.view, response.access) = (Some(view), None);
        Ok(())
    }

    /// Has a new view show what another one does.
    ///
    /// # Errors
    /// Those of Xen.
    pub fn show_as(&mut self, op: &'static str, view: u16, like: ViewId) -> Result<()> {
        let shown = self.views.views.get(&like.0).map(|view| view.shown.clone()).unwrap_or_default();
        shown.iter().try_for_each(|(frame, shown)| self.show_on(op, view, *frame, shown.frame()))
    }

    /// Has a new view show what another one does, and copies of what is touched.
    fn fill(&mut self, view: u16, like: ViewId, parts: &[Part], value: Option<[u8; 16]>) -> Result<()> {
        self.show_as(OP, view, like)?;
        for part in parts {
            let copied = self.events.dry.last().and_then(|dry| dry.copy_of(part.frame));
            let page = match copied {
                Some(page) => page,
                None => self.copy_onto(view, like, part.frame)?,
            };
            let Some(value) = value else { continue };
            let memory = self.shared.memory.mappings();
            let put = memory.write(page * PAGE_SIZE + part.offset as u64, &part.of(&value));
            put.map_err(|error| refused(OP, "the value can't be put into a copy", error))?;
        }
        Ok(())
    }

    fn copy_onto(&mut self, view: u16, like: ViewId, frame: u64) -> Result<u64> {
        let page = self.copy(OP, self.views.frame(like, frame))?;
        if let Some(dry) = self.events.dry.last_mut() {
            dry.pages.push((frame, page));
        }
        self.show_on(OP, view, frame, page)?;
        Ok(page)
    }

    fn show_on(&mut self, op: &'static str, view: u16, frame: u64, page: u64) -> Result<()> {
        self.xen
            .change(view, frame, Some(page))
            .map_err(|error| self.refused(op, "Xen does not change what a view shows", error))
    }

    /// Whether its vCPU is on its view, or will be: a fence keeps it elsewhere for as long as another one steps.
    fn is_under_way(&self, dry: &Dry) -> bool {
        let away = self.events.away.get(&dry.vcpu).is_some_and(|away| away.at == dry.view);
        away || self.views.at.get(dry.vcpu as usize) == Some(&dry.view)
    }

    /// Gives back what the steps had that are done.
    pub fn sweep_dry(&mut self) {
        for dry in std::mem::take(&mut self.events.dry) {
            let stays =
                self.is_under_way(&dry) || self.views.on && again(|| self.xen.destroy(dry.view)).is_err();
            if stays {
                // Busy, it is tried again.
                self.events.dry.push(dry);
            } else {
                self.views.copies.free.extend(dry.pages.iter().map(|(_, page)| page));
            }
        }
    }

    /// Xen's numbers of views that show what a view does, but for some frames: those of steps under way.
    pub fn dry_like(&self, view: ViewId, frame: u64) -> Vec<u16> {
        let like = self.events.dry.iter().filter(|dry| dry.like == view && dry.copy_of(frame).is_none());
        like.map(|dry| dry.view).collect()
    }

    /// Sets anew what the views of steps under way show, which Xen has forgotten.
    pub fn restore_dry(&self) {
        for dry in &self.events.dry {
            let shown = self.views.views.get(&dry.like.0).map(|view| view.shown.clone()).unwrap_or_default();
            let shown = shown.iter().map(|(frame, shown)| (*frame, shown.frame()));
            for (frame, page) in shown.chain(dry.pages.iter().copied()) {
                if let Err(error) = again(|| self.xen.change(dry.view, frame, Some(page))) {
                    log::error!("restore views: {error}");
                }
            }
        }
    }

    /// Waits for the steps under way. A vCPU that does not get on, as the domain is paused, goes past its instruction.
    pub fn finish_dry(&mut self) {
        let since = Instant::now();
        let waits = |world: &Self| world.events.dry.iter().any(|dry| world.is_under_way(dry));
        while self.events.taken && waits(self) && since.elapsed() < PATIENCE {
            self.take_events();
            thread::sleep(Duration::from_millis(1));
        }
        if !waits(self) {
            return;
        }
        let past = self.paused(OP, |world| {
            while world.take_events() {}
            for dry in world.events.dry.clone() {
                if world.is_under_way(&dry)
                    && let Err(error) = world.end_past(&dry)
                {
                    log::error!(
                        "the instruction of vCPU {} at {:#x} writes after all: {error}",
                        dry.vcpu,
                        dry.at
                    );
                }
            }
            Ok(())
        });
        if let Err(error) = past {
            log::error!("{error}");
        }
    }

    fn end_past(&mut self, dry: &Dry) -> Result<()> {
        let Dry { vcpu, at, past, .. } = *dry;
        let now = convert::all(&self.cpu_record(OP, vcpu)?, vcpu).rip;
        let Some(past) = past.filter(|_| now == at) else { return Ok(()) };
        log::error!(
            "vCPU {vcpu} goes past the instruction at {at:#x}, whose writes were denied, without carrying it out"
        );
        self.put_registers(OP, vcpu, &[(Reg::Rip.id(), RegValue::Word(past))])
    }

    /// All vCPUs leave the views of their steps, and these go.
    pub fn drop_dry(&mut self) {
        if self.events.dry.is_empty() {
            return;
        }
        if let Err(error) = again(|| self.xen.switch(0)) {
            log::error!("vCPUs stay on views of their steps: {error}");
        }
        self.views.at.fill(0);
        self.sweep_dry();
        self.events.dry.clear();
    }
}

impl Dry {
    /// One that does what the rules let it.
    #[must_use]
    pub fn guard(vcpu: u32, view: u16, like: ViewId, at: u64) -> Self {
        Self { vcpu, view, like, pages: Vec::new(), at, past: None, guards: true }
    }

    /// Whether it does what the rules let it, of the instruction of a vCPU on its view.
    #[must_use]
    pub fn guards(&self, vcpu: u32, view: u16, at: u64) -> bool {
        self.guards && (self.vcpu, self.view, self.at) == (vcpu, view, at)
    }

    /// Xen's number of its view.
    #[must_use]
    pub fn view(&self) -> u16 {
        self.view
    }

    /// The page in the place of a frame.
    fn copy_of(&self, frame: u64) -> Option<u64> {
        self.pages.iter().find(|(of, _)| *of == frame).map(|(_, page)| *page)
    }
}
