//! The views as the driver knows them: which number of Xen's each has, and what it shows differently.
//!
//! Xen's view 0 stays as it is, with all rights: it is where an access that a rule stops is carried out. So rules on the
//! default view are those of an alternate one that takes its place. A view that has both rules and other frames needs a
//! second one with the same frames and all rights, its *open* one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vmtree_api::ViewId;

use super::rules::Rights;

/// What a view shows at a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shown {
    /// Another frame of the guest.
    Frame(u64),
    /// A page that we added, at this frame.
    Copy(u64),
}

impl Shown {
    /// The frame that has it.
    #[must_use]
    pub fn frame(self) -> u64 {
        match self {
            Self::Frame(frame) | Self::Copy(frame) => frame,
        }
    }
}

/// A view.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Xen's number; 0 is Xen's own view.
    pub xen: u16,
    /// The number of its open one, where it has one.
    pub open: Option<u16>,
    /// What frames may not be used for.
    pub rights: Rights,
    /// Frames that it shows differently.
    pub shown: BTreeMap<u64, Shown>,
}

impl View {
    /// Whether its accesses are carried out on an open view of its own.
    #[must_use]
    pub fn needs_open(&self) -> bool {
        !self.rights.is_empty() && !self.shown.is_empty()
    }

    /// Xen's number of the view that shows the same, with all rights.
    #[must_use]
    pub fn opened(&self) -> u16 {
        match (self.rights.is_empty(), self.open) {
            (true, _) => self.xen,
            (false, Some(open)) => open,
            (false, None) => 0,
        }
    }
}

/// All views.
pub struct ViewBook {
    /// Whether the domain may have alternate ones.
    pub can: bool,
    /// They are on.
    pub on: bool,
    /// They were on before we came.
    pub found: bool,
    /// Each view by its number; 0 is always there.
    pub views: BTreeMap<u32, View>,
    /// The view of each vCPU, for other threads.
    pub current: Arc<[AtomicU32]>,
    /// Xen's number of each vCPU's view, as last seen or set.
    pub at: Vec<u16>,
    /// vCPUs that are to be on another of Xen's views at their next instruction.
    pub pending: BTreeMap<u32, u16>,
    /// Pages that we added: those in use, and those free for the next copy.
    pub copies: Copies,
}

/// Pages beyond the guest's own, for private copies.
#[derive(Clone, Debug, Default)]
pub struct Copies {
    /// The first frame; 0 before the first copy.
    pub first: u64,
    /// How many there are.
    pub count: u64,
    /// Those that no view shows now.
    pub free: Vec<u64>,
    /// How many pages the domain may have without them.
    pub max: u64,
}

impl ViewBook {
    /// The default view alone, for so many vCPUs.
    #[must_use]
    pub fn new(vcpus: u32) -> Self {
        let current = (0..vcpus).map(|_| AtomicU32::new(0)).collect();
        let views = BTreeMap::from([(0, View::default())]);
        let (pending, copies) = (BTreeMap::new(), Copies::default());
        let at = vec![0; vcpus as usize];
        Self { can: false, on: false, found: false, views, current, at, pending, copies }
    }

    /// The view of Xen's number.
    #[must_use]
    pub fn of(&self, xen: u16) -> ViewId {
        let is = |view: &View| view.xen == xen || view.open == Some(xen);
        ViewId(self.views.iter().find(|(_, view)| is(view)).map_or(0, |(number, _)| *number))
    }

    /// Xen's number of a view; that of the default one where there is none.
    #[must_use]
    pub fn xen(&self, view: ViewId) -> u16 {
        self.views.get(&view.0).map_or(0, |view| view.xen)
    }

    /// Xen's number of the view that shows the same, with all rights.
    #[must_use]
    pub fn opened(&self, view: ViewId) -> u16 {
        self.views.get(&view.0).map_or(0, View::opened)
    }

    /// The frame that has what a view shows at a frame.
    #[must_use]
    pub fn frame(&self, view: ViewId, frame: u64) -> u64 {
        let shown = self.views.get(&view.0).and_then(|view| view.shown.get(&frame));
        shown.map_or(frame, |shown| shown.frame())
    }

    /// The view of a vCPU.
    #[must_use]
    pub fn current(&self, vcpu: u32) -> ViewId {
        ViewId(self.current.get(vcpu as usize).map_or(0, |view| view.load(Ordering::Acquire)))
    }

    /// Notes the view of a vCPU.
    pub fn set_current(&self, vcpu: u32, view: ViewId) {
        if let Some(current) = self.current.get(vcpu as usize) {
            current.store(view.0, Ordering::Release);
        }
    }

    /// Notes Xen's view of a vCPU.
    pub fn set_at(&mut self, vcpu: u32, xen: u16) {
        if let Some(at) = self.at.get_mut(vcpu as usize) {
            *at = xen;
        }
    }

    /// The lowest number that no view has.
    #[must_use]
    pub fn free_number(&self) -> u32 {
        (1..).find(|number| !self.views.contains_key(number)).unwrap_or(u32::MAX)
    }

    /// The frames that the driver has added.
    #[must_use]
    pub fn added(&self) -> Vec<u64> {
        (self.copies.first..self.copies.first + self.copies.count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_found_by_both_numbers() {
        let mut book = ViewBook::new(2);
        assert_eq!((book.of(0), book.xen(ViewId(0)), book.opened(ViewId(0))), (ViewId(0), 0, 0));
        let shown = BTreeMap::from([(7, Shown::Copy(0x10_1000)), (8, Shown::Frame(9))]);
        let view = View { xen: 3, open: Some(5), shown, ..View::default() };
        book.views.insert(book.free_number(), view);
        assert_eq!((book.of(3), book.of(5), book.of(4)), (ViewId(1), ViewId(1), ViewId(0)));
        // Without rules nothing stops an access on the view itself.
        assert_eq!(book.opened(ViewId(1)), 3);
        assert_eq!(
            (book.frame(ViewId(1), 7), book.frame(ViewId(1), 8), book.frame(ViewId(1), 9)),
            (0x10_1000, 9, 9)
        );
        assert_eq!((book.frame(ViewId(0), 7), book.free_number()), (7, 2));
    }

    #[test]
    fn a_view_with_rules_is_opened_by_another() {
        use vmtree_api::views::Rule;
        use vmtree_api::{Access, Gfn};
        let rule = Rule { view: ViewId(1), frames: Gfn(1)..Gfn(2), access: Access::READ, hold: false };
        let rights = Rights::of([rule].iter());
        let mut view = View { xen: 2, rights, ..View::default() };
        assert_eq!((view.opened(), view.needs_open()), (0, false));
        view.shown.insert(1, Shown::Frame(2));
        view.open = Some(4);
        assert_eq!((view.opened(), view.needs_open()), (4, true));
    }
}
