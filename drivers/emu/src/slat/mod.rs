//! Second-level address translation: what each view shows at a frame, and what may be done there.

mod copies;
mod rules;
mod view;

pub use copies::COPY;
use copies::Copies;
pub use rules::check;
use view::View;

use vmtree_api::views::{Remap, Rule};
use vmtree_api::{Access, Error, ErrorKind, Gfn, Result, ViewId};

/// The most views, the default one included: as many as EPTP switching has (Intel SDM volume 3C, 26.5.6.3).
pub const MOST: usize = 512;

/// All views of a machine. What is said of their place in physical memory is a *place*: an address of RAM, or
/// [`COPY`] and an address among the private copies.
#[derive(Debug)]
pub struct Slat {
    views: Vec<Option<View>>,
    copies: Copies,
}

/// What a view has at a frame.
#[derive(Clone, Copy, Debug)]
pub struct Spot {
    /// The place of the frame's first byte.
    pub frame: u64,
    /// What may be done there.
    pub rights: Access,
    /// Whether a violation is held.
    pub hold: bool,
}

fn unknown(op: &'static str, view: ViewId) -> Error {
    Error::new(ErrorKind::NotFound, op, format!("there is no view {}", view.0))
}

impl Slat {
    /// The default view alone, for a machine with so many frames of RAM.
    #[must_use]
    pub fn new(frames: u64) -> Self {
        Self { views: vec![Some(View::default())], copies: Copies::new(frames) }
    }

    fn view(&self, view: u32) -> Option<&View> {
        self.views.get(view as usize)?.as_ref()
    }

    /// Whether there is such a view.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn known(&self, op: &'static str, view: ViewId) -> Result<()> {
        self.view(view.0).map(drop).ok_or_else(|| unknown(op, view))
    }

    /// What a view has at the frame of `gpa`.
    #[must_use]
    pub fn spot(&self, view: u32, gpa: u64) -> Spot {
        let frame = gpa & !0xfff;
        self.view(view).map_or(Spot { frame, rights: Access::ALL, hold: false }, |view| view.spot(frame))
    }

    /// The place of `gpa` in a view.
    #[must_use]
    pub fn place(&self, view: u32, gpa: u64) -> u64 {
        self.spot(view, gpa).frame | gpa & 0xfff
    }

    /// A new view with the lowest free number.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`].
    pub fn create(&mut self) -> Result<ViewId> {
        let index = self.views.iter().position(Option::is_none).unwrap_or(self.views.len());
        if index >= MOST {
            let why = format!("there are {MOST} views already, as many as EPTP switching has; remove one");
            return Err(Error::new(ErrorKind::NoSpace, "create view", why));
        }
        match self.views.get_mut(index) {
            Some(free) => *free = Some(View::default()),
            None => self.views.push(Some(View::default())),
        }
        Ok(ViewId(index as u32))
    }

    /// Removes a view and its copies. The caller knows that no vCPU runs on it.
    pub fn destroy(&mut self, view: ViewId) {
        if let Some(view) = self.views.get_mut(view.0 as usize).and_then(Option::take) {
            view.copies().for_each(|place| self.copies.free(place));
        }
    }

    /// Changes what a view shows at a frame of RAM; `fill` reads what it shows now, for a copy.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for the view, [`ErrorKind::NoSpace`] for a copy.
    pub fn remap(
        &mut self,
        view: ViewId,
        gfn: Gfn,
        to: Remap,
        fill: impl FnOnce(&Self, u64, &mut [u8; 4096]),
    ) -> Result<()> {
        const OP: &str = "remap";
        self.known(OP, view)?;
        let gpa = gfn.0 << 12;
        let now = self.spot(view.0, gpa).frame;
        let frame = match to {
            Remap::Copy if now & COPY != 0 => return Ok(()),
            Remap::Copy => {
                let mut page = Box::new([0; 4096]);
                fill(self, now, &mut page);
                Some(self.copies.add(page)?)
            }
            Remap::Frame(other) if other == gfn => None,
            Remap::Frame(other) => Some(other.0 << 12),
            Remap::None => None,
        };
        if now & COPY != 0 {
            self.copies.free(now);
        }
        if let Some(Some(view)) = self.views.get_mut(view.0 as usize) {
            view.remap(gpa, frame);
        }
        Ok(())
    }

    /// Replaces the rules of all views, which were checked.
    pub fn set_rules(&mut self, rules: &[Rule]) {
        for (index, view) in self.views.iter_mut().enumerate() {
            let of = |rule: &&Rule| rule.view.0 as usize == index;
            if let Some(view) = view {
                view.set_rules(rules.iter().filter(of).cloned().collect());
            }
        }
    }

    /// Reads inside a private copy; `false` where `place` is none.
    #[must_use]
    pub fn load(&self, place: u64, buf: &mut [u8]) -> bool {
        self.copies.part(place, buf.len()).is_some_and(|part| {
            buf.copy_from_slice(part);
            true
        })
    }

    /// Writes inside a private copy; `false` where `place` is none.
    pub fn store(&mut self, place: u64, data: &[u8]) -> bool {
        self.copies.part_mut(place, data.len()).is_some_and(|part| {
            part.copy_from_slice(data);
            true
        })
    }
}
