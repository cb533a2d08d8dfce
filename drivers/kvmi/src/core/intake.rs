//! Events as they come in: what they are of, and whether their vCPU stands for them.

use vmtree_api::events::{Detail, Event, EventKind};
use vmtree_api::{Access, ViewId};

use super::{Core, Stepping, Stop, Why};
use crate::convert;
use crate::permissions;
use crate::port::{Control, Kind, Reply, Told, kind};

impl Core {
    /// Takes all events that are there.
    pub fn intake(&mut self) {
        self.make_room();
        while self.gone.is_none() {
            match self.port.next() {
                Ok(Some(told)) => self.take(told),
                Ok(None) => return,
                Err(refusal) => self.note_end(&refusal),
            }
        }
    }

    fn take(&mut self, mut told: Told) {
        let index = usize::from(told.vcpu);
        self.news = true;
        if told.kind == Kind::Unhook {
            log::warn!("QEMU asks to let the VM go: it is about to be stopped, saved or moved");
            self.leave();
            return self.break_off("QEMU asked to let the VM go, to stop, save or move it".to_owned());
        }
        let Some(vcpu) = self.vcpus.get_mut(index) else {
            return self.break_off(format!("the hypervisor told of vCPU {index}, which is not there"));
        };
        if vcpu.at.is_some() {
            let why = format!("vCPU {index} raised a second event before the first was answered");
            return self.break_off(why);
        }
        if !matches!(told.kind, Kind::Fault { .. }) {
            told.view = self.current.lock().get(index).map_or(0, |view| view.0 as u16);
        }
        match told.kind {
            Kind::Pause => self.paused(index, told),
            Kind::SingleStep => self.stepped(index, told),
            Kind::Fault { .. } => self.fault(index, told),
            _ => self.other(index, told),
        }
    }

    fn put(&mut self, index: usize, told: Told, why: Why) {
        if let Some(vcpu) = self.vcpu(index) {
            vcpu.at = Some(Stop { told, why });
        }
    }

    /// Answers an event that nobody is told of.
    fn pass(&mut self, index: usize, told: Told, reply: Reply) {
        self.put(index, told, Why::Pause);
        self.let_go(index, reply);
    }

    fn paused(&mut self, index: usize, told: Told) {
        let needed = self.needed(index);
        if let Some(vcpu) = self.vcpu(index) {
            vcpu.pausing = false;
        }
        if needed { self.put(index, told, Why::Pause) } else { self.pass(index, told, Reply::Continue) }
    }

    /// A vCPU did an instruction.
    fn stepped(&mut self, index: usize, told: Told) {
        let stepping = self.vcpu(index).and_then(|vcpu| vcpu.stepping.take());
        if let Some(Stepping::Back(view)) = stepping {
            let back = self.put_on(index, view);
            let off = self.stop_stepping(index);
            if let Err(error) = back.and(off) {
                log::warn!("vCPU {index} does not come back to view {}: {error}", view.0);
            }
        }
        self.behind(index, told);
    }

    /// What a vCPU does behind an instruction: it stands where it was to be stepped, or the VM is paused.
    fn behind(&mut self, index: usize, told: Told) {
        if self.stays(index) {
            self.put(index, told, Why::Stepped);
        } else {
            self.pass(index, told, Reply::Continue);
        }
    }

    /// Whether a vCPU behind an instruction stands there already for a pause. One that is still to be told of comes by itself.
    pub(super) fn stays(&self, index: usize) -> bool {
        self.needed(index) && self.vcpus.get(index).is_some_and(|vcpu| !vcpu.pausing)
    }

    fn fault(&mut self, index: usize, told: Told) {
        let Some(mut event) = convert::event(&told) else { return self.pass(index, told, Reply::Retry) };
        let Detail::Slat { access, gpa, gva, page_walk } = &mut event.detail else { return };
        let view = ViewId(u32::from(told.view));
        let rule = permissions::find(&self.wanted.rules, view, gpa.gfn().0);
        let Some(hold) = rule.filter(|rule| !rule.access.contains(*access)).map(|rule| rule.hold) else {
            // The rule is gone or lets it pass by now.
            return self.pass(index, told, Reply::Retry);
        };
        // KVMI does not tell a page walk from other accesses; only a walk touches another page than its address is of.
        if let Some(gva) = gva
            && !access.contains(Access::EXECUTE)
        {
            match self.port.translate(told.vcpu, gva.0) {
                Ok(to) => *page_walk = to / vmtree_api::PAGE_SIZE != gpa.gfn().0,
                Err(refusal) => self.note_end(&refusal),
            }
        }
        self.deliver(index, told, event, hold);
    }

    fn other(&mut self, index: usize, told: Told) {
        match convert::event(&told).and_then(|event| Some((event, self.matching(&event)?))) {
            Some((event, hold)) => self.deliver(index, told, event, hold),
            None => self.pass(index, told, Reply::Continue),
        }
    }

    fn deliver(&mut self, index: usize, told: Told, event: Event, hold: bool) {
        if hold {
            self.hold(index, told, event);
        } else if self.queue.push(event, None) {
            self.pass(index, told, Reply::Continue);
        } else {
            self.put(index, told, Why::Full(event));
        }
    }

    fn hold(&mut self, index: usize, told: Told, event: Event) {
        self.serial += 1;
        let serial = self.serial;
        self.put(index, told, Why::Held(serial));
        self.queue.push(event, Some(serial));
    }

    /// Whether an event is watched, and if so, whether it is held.
    fn matching(&self, event: &Event) -> Option<bool> {
        let (way, index) = (event.way(), convert::index(event));
        let of = |watch: &&vmtree_api::events::Watch| {
            watch.kind == event.kind
                && watch.way.is_none_or(|wanted| wanted == way)
                && watch.vcpu.is_none_or(|wanted| wanted == event.vcpu)
                && watch.index.is_none_or(|wanted| event.kind != EventKind::Msr || Some(wanted) == index)
        };
        self.wanted.watches.iter().filter(of).map(|watch| watch.hold).reduce(|one, other| one || other)
    }

    /// Tells of events that there was no room for.
    fn make_room(&mut self) {
        for index in 0..self.vcpus.len() {
            let Some(Stop { why: Why::Full(event), .. }) =
                self.vcpus.get(index).and_then(|vcpu| vcpu.at.as_ref())
            else {
                continue;
            };
            let (event, step) = (*event, event.kind == EventKind::SingleStep);
            if !self.queue.push(event, None) {
                return;
            }
            let Some(stop) = self.vcpu(index).and_then(|vcpu| vcpu.at.take()) else { continue };
            if step { self.behind(index, stop.told) } else { self.pass(index, stop.told, Reply::Continue) }
        }
    }

    /// Switches single-step on for a while.
    pub(super) fn start_stepping(&mut self, index: usize) -> vmtree_api::Result<()> {
        self.switch_step(index, true)
    }

    /// Switches it off.
    pub(super) fn stop_stepping(&mut self, index: usize) -> vmtree_api::Result<()> {
        self.switch_step(index, false)
    }

    fn switch_step(&mut self, index: usize, on: bool) -> vmtree_api::Result<()> {
        if self.vcpus.get(index).is_none_or(|vcpu| vcpu.step_on == on) {
            return Ok(());
        }
        for what in [Control::Event(kind::SINGLESTEP), Control::Step] {
            let answer = self.port.control(index as u16, what, on);
            self.done("step", answer)?;
        }
        if let Some(vcpu) = self.vcpu(index) {
            vcpu.step_on = on;
        }
        Ok(())
    }
}
