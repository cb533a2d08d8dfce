//! EPT views: which there are, what they show, who runs on them.

use vmtree_api::views::Remap;
use vmtree_api::{Error, ErrorKind, Gfn, Gpa, PAGE_SIZE, Result, Span, ViewId};

use super::{Core, Shown};

impl Core {
    /// Whether a view is there.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn known(&self, op: &'static str, view: ViewId) -> Result<u16> {
        let number = u16::try_from(view.0).unwrap_or(u16::MAX);
        if number == 0 && view.0 == 0 || self.views.contains_key(&number) {
            return Ok(number);
        }
        Err(Error::new(ErrorKind::NotFound, op, format!("there is no view {}", view.0)))
    }

    fn made(&self, op: &'static str, view: ViewId, why: &str) -> Result<u16> {
        if view.0 == 0 {
            let why = format!("view 0 is the default view: {why}");
            return Err(Error::new(ErrorKind::Invalid, op, why));
        }
        self.known(op, view)
    }

    /// Makes a view.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] at the host's limit.
    pub fn create_view(&mut self) -> Result<ViewId> {
        const OP: &str = "create view";
        let answer = self.port.create();
        let view = self.done(OP, answer)?;
        if view == 0 || self.views.contains_key(&view) {
            let why = format!("the hypervisor made view {view}, which was there already");
            return Err(Error::new(ErrorKind::Protocol, OP, why));
        }
        self.views.insert(view, std::collections::BTreeMap::new());
        Ok(ViewId(u32::from(view)))
    }

    /// Removes a view with what it shows.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while a vCPU runs on it.
    pub fn destroy_view(&mut self, view: ViewId) -> Result<()> {
        const OP: &str = "remove view";
        let number = self.made(OP, view, "it stays")?;
        let back = |vcpu: &super::Vcpu| vcpu.stepping == Some(super::Stepping::Back(view));
        let on = self.current.lock().iter().position(|is| *is == view);
        if let Some(vcpu) = on.or_else(|| self.vcpus.iter().position(back)) {
            let why = format!("vCPU {vcpu} runs on view {}; switch it first", view.0);
            return Err(Error::new(ErrorKind::Busy, OP, why));
        }
        let shown: Vec<u64> =
            self.views.get(&number).into_iter().flat_map(|view| view.keys().copied()).collect();
        for gfn in shown {
            self.show(OP, number, gfn, None)?;
        }
        let answer = self.port.destroy(number);
        self.done(OP, answer)?;
        self.views.remove(&number);
        self.wanted.rules.retain(|rule| rule.view != view);
        Ok(())
    }

    /// Changes what a view shows at a frame.
    ///
    /// # Errors
    /// As [`vmtree_api::views::Views::remap`].
    pub fn remap(&mut self, view: ViewId, gfn: Gfn, to: Remap) -> Result<()> {
        const OP: &str = "remap";
        let number = self.made(OP, view, "it shows the guest's own frames")?;
        self.frame(OP, gfn)?;
        match to {
            Remap::None => self.show(OP, number, gfn.0, None),
            Remap::Frame(other) => {
                self.frame(OP, other)?;
                let shown = (other != gfn).then_some(Shown { gfn: other.0, copy: false });
                self.show(OP, number, gfn.0, shown)
            }
            Remap::Copy => self.copy(OP, number, gfn.0),
        }
    }

    fn frame(&self, op: &'static str, gfn: Gfn) -> Result<()> {
        match gfn.gpa().map(|gpa| (gpa, self.map.at(gpa))) {
            Some((_, Span::Region(region))) if region.holds_data() => Ok(()),
            at => {
                let at = at.map_or_else(|| format!("frame {:#x}", gfn.0), |(gpa, _)| gpa.to_string());
                let why = format!("{at} is not RAM; mem.map shows where there is");
                Err(Error::new(ErrorKind::NotFound, op, why))
            }
        }
    }

    fn shown(&self, view: u16, gfn: u64) -> Option<Shown> {
        self.views.get(&view)?.get(&gfn).copied()
    }

    fn copy(&mut self, op: &'static str, view: u16, gfn: u64) -> Result<()> {
        let now = self.shown(view, gfn);
        if now.is_some_and(|shown| shown.copy) {
            return Ok(());
        }
        let mut page = [0; PAGE_SIZE as usize];
        let answer = self.port.read(now.map_or(gfn, |shown| shown.gfn) * PAGE_SIZE, &mut page);
        self.done(op, answer)?;
        let copy = self.free_gfn;
        let answer = self.port.alloc(copy);
        self.done(op, answer)?;
        self.free_gfn += 1;
        let answer = self.port.write(copy * PAGE_SIZE, &page);
        let filled = self.done(op, answer);
        filled.and_then(|()| self.show(op, view, gfn, Some(Shown { gfn: copy, copy: true }))).inspect_err(
            |_| {
                // The first error is the one to tell.
                let _ = self.port.free(copy);
            },
        )
    }

    fn show(&mut self, op: &'static str, view: u16, gfn: u64, to: Option<Shown>) -> Result<()> {
        let before = self.shown(view, gfn);
        if before == to {
            return Ok(());
        }
        let answer = self.port.change(view, gfn, to.map_or(gfn, |shown| shown.gfn));
        self.done(op, answer)?;
        if let Some(view) = self.views.get_mut(&view) {
            match to {
                Some(shown) => view.insert(gfn, shown),
                None => view.remove(&gfn),
            };
        }
        match before {
            Some(Shown { gfn, copy: true }) => {
                let answer = self.port.free(gfn);
                self.done(op, answer)
            }
            _ => Ok(()),
        }
    }

    /// Puts a vCPU on a view.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for a view that is not there.
    pub fn put_on(&mut self, index: usize, view: ViewId) -> Result<()> {
        const OP: &str = "switch view";
        let number = self.known(OP, view)?;
        if self.current.lock().get(index) == Some(&view) {
            return Ok(());
        }
        let answer = self.port.switch(index as u16, number);
        self.done(OP, answer)?;
        if let Some(current) = self.current.lock().get_mut(index) {
            *current = view;
        }
        Ok(())
    }

    /// Puts vCPUs on a view by a user's wish: a step on another view does not bring them back.
    ///
    /// # Errors
    /// As [`Core::put_on`].
    pub fn switch_view(&mut self, only: Option<usize>, view: ViewId) -> Result<()> {
        for index in (0..self.vcpus.len()).filter(|index| only.is_none_or(|only| only == *index)) {
            self.put_on(index, view)?;
            if let Some(vcpu) = self.vcpu(index)
                && matches!(vcpu.stepping, Some(super::Stepping::Back(_)))
            {
                vcpu.stepping = Some(super::Stepping::Back(view));
            }
        }
        Ok(())
    }

    /// Where a view has the bytes at `gpa`, which lie in one frame.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for a view that is not there, or no memory; [`ErrorKind::Invalid`] across a frame.
    pub fn place(&self, op: &'static str, view: ViewId, gpa: Gpa, bytes: usize) -> Result<u64> {
        let number = self.known(op, view)?;
        self.frame(op, gpa.gfn())?;
        if gpa.page_offset() + bytes as u64 > PAGE_SIZE {
            let why = format!("{bytes} bytes at {gpa} are not in one frame");
            return Err(Error::new(ErrorKind::Invalid, op, why));
        }
        let gfn = self.shown(number, gpa.gfn().0).map_or(gpa.gfn().0, |shown| shown.gfn);
        Ok(gfn * PAGE_SIZE + gpa.page_offset())
    }

    /// Leaves no view behind.
    pub(super) fn leave_views(&mut self) -> Result<()> {
        self.switch_view(None, ViewId(0))?;
        let views: Vec<u16> = self.views.keys().copied().collect();
        views.into_iter().try_for_each(|view| self.destroy_view(ViewId(u32::from(view))))
    }
}
