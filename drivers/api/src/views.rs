//! SLAT permissions, frame remapping and alternate views.

use std::ops::Range;

use crate::{Access, Gfn, Result, VcpuId, ViewId};

/// A SLAT permission over a range of frames. A violation raises `slat`; with `deny` it is a wall as well.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// The frames, end excluded.
    pub frames: Range<Gfn>,
    /// What the guest may do without a violation.
    pub access: Access,
    /// Writes are dropped, reads and fetches get #PF.
    pub deny: bool,
}

/// What a view shows at a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Remap {
    /// The guest's own frame.
    None,
    /// Another frame of the guest.
    Frame(Gfn),
    /// A private copy, made now, outside the guest's map.
    Copy,
}

/// SLAT views. Calls are posted. What a call sets is undone by setting it back; a driver that is dropped undoes all.
pub trait Views: Send + Sync {
    /// How many views there can be, the default view included; `None` where only memory limits it.
    fn limit(&self) -> Option<u32>;

    /// Makes a view that shows what the default view shows, with all rights.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NoSpace`] at the limit.
    fn create(&self) -> Result<ViewId>;

    /// Removes a view with its rules, remaps and private copies.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Busy`] while a vCPU runs on it.
    fn destroy(&self, view: ViewId) -> Result<()>;

    /// Replaces all rules of a view; none is the undo. Rules don't overlap.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] for rights that the hardware lacks; nothing is changed then.
    fn set_rules(&self, view: ViewId, rules: &[Rule]) -> Result<()>;

    /// Changes what a view shows at a frame.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] for a frame outside RAM.
    fn remap(&self, view: ViewId, gfn: Gfn, to: Remap) -> Result<()>;

    /// Puts one vCPU, or all, on a view.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] for a view or vCPU that is not there.
    fn switch(&self, vcpu: Option<VcpuId>, view: ViewId) -> Result<()>;

    /// The view a vCPU runs on.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] for a vCPU that is not there.
    fn current(&self, vcpu: VcpuId) -> Result<ViewId>;
}
