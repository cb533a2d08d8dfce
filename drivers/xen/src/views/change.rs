//! How views are made, changed, switched and taken back.

use vmtree_api::views::in_order;
use vmtree_api::views::{Remap, Rule};
use vmtree_api::{Error, ErrorKind, Gpa, PAGE_SIZE, RegionKind, Result, Span, VcpuId, ViewId};

use super::book::{Shown, View};
use super::rules::{self, ALL, Rights};
use crate::again::again;
use crate::error::{is, number, refused};
use crate::world::{World, note};

impl World {
    /// Turns alternate views on, if they are off.
    fn need_views(&mut self, op: &'static str) -> Result<()> {
        if self.views.on {
            return Ok(());
        }
        self.note(note::VIEWS, if self.views.found { "found" } else { "on" })?;
        if !self.views.found
            && let Err(error) = self.xen.set_views(true)
        {
            self.undo.done(note::VIEWS);
            return Err(self.refused(op, "Xen does not turn alternate views on", error));
        }
        self.views.on = true;
        self.views.at.fill(0);
        Ok(())
    }

    /// Has Xen make a view, with these rights on all frames.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] where there is none left.
    pub fn new_view(&mut self, op: &'static str, access: u8) -> Result<u16> {
        self.need_views(op)?;
        self.xen.create(access).map_err(|error| {
            if is(&error, number::EINVAL) || is(&error, number::ENOSPC) || is(&error, number::ENOMEM) {
                let why = "Xen has no more views: at most 10, one of them its own, one for rules on view 0, one for \
                           single steps, one for a vCPU that does an instruction without its writes, and one more for \
                           each view with both rules and other frames; remove one";
                return Error::new(ErrorKind::NoSpace, op, why).caused_by(error);
            }
            refused(op, "Xen makes no view", error)
        })
    }

    /// Makes a view.
    ///
    /// # Errors
    /// As [`vmtree_api::views::Views::create`].
    pub fn create_view(&mut self) -> Result<ViewId> {
        let xen = self.new_view("create view", ALL)?;
        let number = self.views.free_number();
        self.views.views.insert(number, View { xen, ..View::default() });
        Ok(ViewId(number))
    }

    /// Removes a view.
    ///
    /// # Errors
    /// As [`vmtree_api::views::Views::destroy`].
    pub fn destroy_view(&mut self, view: ViewId) -> Result<()> {
        const OP: &str = "destroy view";
        self.known(OP, view)?;
        if view.0 == 0 {
            return Err(Error::new(ErrorKind::Invalid, OP, "view 0 is the default view and stays"));
        }
        let on_it = (0..self.info.vcpus).find(|vcpu| self.views.current(*vcpu) == view);
        if let Some(vcpu) = on_it {
            return Err(Error::new(
                ErrorKind::Busy,
                OP,
                format!("vCPU {vcpu} runs on it; put it on another view"),
            ));
        }
        let Some(gone) = self.views.views.get(&view.0).cloned() else { return Ok(()) };
        if let Some(open) = gone.open {
            self.drop_view(OP, open)?;
            if let Some(view) = self.views.views.get_mut(&view.0) {
                view.open = None;
            }
        }
        self.drop_view(OP, gone.xen)?;
        self.views.views.remove(&view.0);
        let copies = gone.shown.values().filter(|shown| matches!(shown, Shown::Copy(_)));
        self.views.copies.free.extend(copies.map(|shown| shown.frame()));
        self.settle_views();
        Ok(())
    }

    fn drop_view(&mut self, op: &'static str, xen: u16) -> Result<()> {
        match self.xen.destroy(xen) {
            Err(error) if is(&error, number::EBUSY) => {
                let why = "a vCPU that halts has not left the view yet; try again once it ran";
                Err(Error::new(ErrorKind::Busy, op, why))
            }
            Err(error) => Err(self.refused(op, "Xen does not remove the view", error)),
            Ok(()) => Ok(()),
        }
    }

    /// Changes what a view shows at a frame.
    ///
    /// # Errors
    /// As [`vmtree_api::views::Views::remap`].
    pub fn remap(&mut self, view: ViewId, frame: u64, to: Remap) -> Result<()> {
        const OP: &str = "remap";
        self.known(OP, view)?;
        if view.0 == 0 {
            return Err(Error::new(ErrorKind::Invalid, OP, "view 0 shows the guest's own frames"));
        }
        self.ram(OP, frame)?;
        let before = self.views.views.get(&view.0).and_then(|view| view.shown.get(&frame).copied());
        let shown = match (to, before) {
            (Remap::Copy, Some(Shown::Copy(_))) => return Ok(()),
            (Remap::Copy, _) => Some(Shown::Copy(self.copy(OP, self.views.frame(view, frame))?)),
            (Remap::Frame(other), _) if other.0 == frame => None,
            (Remap::Frame(other), _) => {
                self.ram(OP, other.0)?;
                Some(Shown::Frame(other.0))
            }
            (Remap::None, _) => None,
        };
        if let Err(error) = self.show(OP, view, frame, shown) {
            // Whatever took place of it.
            if let Err(error) = self.show(OP, view, frame, before) {
                log::error!("{error}");
            }
            self.free_copy(shown);
            return Err(error);
        }
        self.free_copy(before);
        Ok(())
    }

    fn free_copy(&mut self, shown: Option<Shown>) {
        if let Some(Shown::Copy(frame)) = shown {
            self.views.copies.free.push(frame);
        }
    }

    /// Whether there is RAM at a frame.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn ram(&self, op: &'static str, frame: u64) -> Result<()> {
        let gpa = Gpa(frame.saturating_mul(PAGE_SIZE));
        match vmtree_api::Memory::map(&*self.shared.memory).at(gpa) {
            Span::Region(region) if region.kind == RegionKind::Ram => Ok(()),
            _ => Err(Error::new(
                ErrorKind::NotFound,
                op,
                format!("there is no RAM at {gpa}; mem.map shows where there is"),
            )),
        }
    }

    /// Has a view, and its open one, show something at a frame.
    fn show(&mut self, op: &'static str, view: ViewId, frame: u64, shown: Option<Shown>) -> Result<()> {
        if let Some(view) = self.views.views.get_mut(&view.0) {
            match shown {
                Some(shown) => drop(view.shown.insert(frame, shown)),
                None => drop(view.shown.remove(&frame)),
            }
        }
        self.open(op, view)?;
        let Some(now) = self.views.views.get(&view.0).cloned() else { return Ok(()) };
        for xen in [Some(now.xen), now.open].into_iter().flatten().chain(self.dry_like(view, frame)) {
            let to = shown.map(Shown::frame);
            if let Err(error) = self.xen.change(xen, frame, to) {
                return Err(self.refused(op, "Xen does not change what the view shows", error));
            }
        }
        // Xen has given the frame all rights with that.
        let access = now.rights.at(frame);
        if access != ALL {
            self.set_access(op, now.xen, frame..frame + 1, access)?;
        }
        Ok(())
    }

    /// Makes the open view of a view that needs one.
    fn open(&mut self, op: &'static str, view: ViewId) -> Result<()> {
        let Some(now) = self.views.views.get(&view.0).cloned() else { return Ok(()) };
        if !now.needs_open() || now.open.is_some() {
            return Ok(());
        }
        let open = self.new_view(op, ALL)?;
        if let Err(error) = self.show_as(op, open, view) {
            let _ = self.xen.destroy(open);
            return Err(error);
        }
        if let Some(view) = self.views.views.get_mut(&view.0) {
            view.open = Some(open);
        }
        Ok(())
    }

    /// Sets the rights of frames on one of Xen's views.
    ///
    /// # Errors
    /// Those of Xen.
    pub fn set_access(
        &mut self,
        op: &'static str,
        xen: u16,
        frames: std::ops::Range<u64>,
        access: u8,
    ) -> Result<()> {
        self.xen
            .set_access(xen, frames, access)
            .map_err(|error| self.refused(op, "Xen does not change the rights of frames", error))
    }

    /// Replaces all rules: checked before, and as before on failure.
    ///
    /// # Errors
    /// As [`vmtree_api::events::EventSource::watch`].
    pub fn set_rules(&mut self, all: &[Rule]) -> Result<()> {
        const OP: &str = "watch";
        let map = vmtree_api::Memory::map(&*self.shared.memory);
        for rule in all {
            self.known(OP, rule.view)?;
            rules::check(rule, &map)?;
        }
        in_order(all, rules::OP)?;
        let of = |view: u32| Rights::of(all.iter().filter(move |rule| rule.view.0 == view));
        let wanted: Vec<(u32, Rights)> = self.views.views.keys().map(|view| (*view, of(*view))).collect();
        let before: Vec<(u32, Rights)> =
            self.views.views.iter().map(|(number, view)| (*number, view.rights.clone())).collect();
        for (view, rights) in wanted {
            if let Err(error) = self.set_rights(ViewId(view), rights) {
                for (view, rights) in before {
                    if let Err(error) = self.set_rights(ViewId(view), rights) {
                        log::error!("a rule could not be taken back: {error}");
                    }
                }
                return Err(error);
            }
        }
        self.settle_views();
        Ok(())
    }

    fn set_rights(&mut self, view: ViewId, rights: Rights) -> Result<()> {
        const OP: &str = "watch";
        let Some(now) = self.views.views.get(&view.0).cloned() else { return Ok(()) };
        if now.rights == rights {
            return Ok(());
        }
        let base = view.0 == 0 && self.views.can;
        if base && now.xen == 0 {
            let xen = self.new_view(OP, ALL)?;
            self.entry(view, |view| view.xen = xen);
        }
        self.note_rights(&rights)?;
        let xen = self.views.xen(view);
        // The next step, should this one fail, goes from what there is then.
        for (frames, access) in now.rights.changes(&rights) {
            self.set_access(OP, xen, frames, access)?;
        }
        let empty = rights.is_empty();
        self.entry(view, |view| view.rights = rights);
        self.open(OP, view)?;
        if base && now.xen == 0 {
            self.replace(OP, 0, xen)?;
        } else if base && empty {
            self.replace(OP, xen, 0)?;
            self.entry(view, |view| view.xen = 0);
            if self.xen.destroy(xen).is_err() {
                // A vCPU that halts is still on it; it has all rights, and goes with the others.
                log::debug!("view {xen} of Xen's stays for now");
            }
        }
        Ok(())
    }

    /// Changes what is known of a view.
    pub fn entry(&mut self, view: ViewId, change: impl FnOnce(&mut View)) {
        if let Some(view) = self.views.views.get_mut(&view.0) {
            change(view);
        }
    }

    /// Without alternate views, rights outlive us.
    fn note_rights(&self, rights: &Rights) -> Result<()> {
        if self.views.can {
            return Ok(());
        }
        let ends = rights.iter().map(|(frames, _)| frames.end).max();
        let starts = rights.iter().map(|(frames, _)| frames.start).min();
        match starts.zip(ends) {
            Some((start, end)) => self.note(note::RIGHTS, &format!("{start} {end}")),
            None => {
                self.undo.done(note::RIGHTS);
                Ok(())
            }
        }
    }

    /// Puts vCPUs that are on one of Xen's views on another.
    fn replace(&mut self, op: &'static str, from: u16, to: u16) -> Result<()> {
        let targets = (0..self.info.vcpus).map(|vcpu| match self.target(vcpu) {
            at if at == from => to,
            at => at,
        });
        let targets = targets.collect::<Vec<u16>>();
        self.place(op, &targets)
    }

    /// Where a vCPU is, or will be at its next instruction.
    #[must_use]
    pub fn target(&self, vcpu: u32) -> u16 {
        let window = self.events.windows.home(vcpu).map(|home| self.views.xen(home));
        let at = window.or_else(|| self.views.at.get(vcpu as usize).copied()).unwrap_or(0);
        let home = self.events.fence.as_ref().and_then(|fence| fence.home(vcpu, at)).unwrap_or(at);
        self.views.pending.get(&vcpu).copied().unwrap_or(home)
    }

    /// Switches one vCPU, or all.
    ///
    /// # Errors
    /// As [`vmtree_api::views::Views::switch`].
    pub fn switch_view(&mut self, vcpu: Option<VcpuId>, view: ViewId) -> Result<()> {
        const OP: &str = "switch view";
        self.known(OP, view)?;
        let only = vcpu.map(|vcpu| self.vcpu(OP, vcpu)).transpose()?;
        let xen = self.views.xen(view);
        let meant = |vcpu: u32| only.is_none_or(|only| only == vcpu);
        let targets: Vec<u16> =
            (0..self.info.vcpus).map(|vcpu| if meant(vcpu) { xen } else { self.target(vcpu) }).collect();
        self.place(OP, &targets)?;
        for vcpu in (0..self.info.vcpus).filter(|vcpu| meant(*vcpu)) {
            self.views.set_current(vcpu, view);
            self.events.away.remove(&vcpu);
        }
        // Who is in the middle of an instruction elsewhere is no more.
        if let Err(error) = self.sync_steps(OP) {
            log::error!("{error}");
        }
        Ok(())
    }

    /// Puts each vCPU on one of Xen's views. Xen switches all at once, or one by the answer to an event of it.
    ///
    /// # Errors
    /// Those of Xen.
    pub fn place(&mut self, op: &'static str, targets: &[u16]) -> Result<()> {
        if !self.views.on {
            return Ok(());
        }
        if let Some(first) = targets.first()
            && targets.iter().all(|target| target == first)
            && self.events.fence.is_none()
        {
            return self.place_all(op, *first);
        }
        for (vcpu, target) in (0..).zip(targets) {
            let at = self.views.at.get(vcpu as usize).copied().unwrap_or(0);
            let fence = self.events.fence.as_mut();
            if at == *target || fence.is_some_and(|fence| fence.send_home(vcpu, at, *target)) {
                self.views.pending.remove(&vcpu);
            } else {
                self.views.pending.insert(vcpu, *target);
            }
        }
        self.sync_steps(op)
    }

    /// Puts all vCPUs on one of Xen's views.
    ///
    /// # Errors
    /// Those of Xen.
    pub fn place_all(&mut self, op: &'static str, view: u16) -> Result<()> {
        let place = |world: &mut Self| {
            if let Err(error) = again(|| world.xen.switch(view)) {
                return Err(world.refused(op, "Xen does not switch the view", error));
            }
            world.views.at.fill(view);
            world.views.pending.clear();
            // Those are stepped again.
            world.events.windows.clear();
            world.sync_steps(op)
        };
        // Nobody may run on without a step in between.
        if self.events.windows.any() { self.paused(op, place) } else { place(self) }
    }
}
