//! SLAT permissions, frame remapping and alternate views.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::{Access, Error, ErrorKind, Gfn, Gpa, MemoryMap, RegionKind, Result, Span, VcpuId, ViewId};

/// A SLAT permission over a range of frames, part of [`crate::events::Wanted`]. It is a trap: a violation raises slat.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// The view it is of.
    pub view: ViewId,
    /// The frames, end excluded.
    pub frames: Range<Gfn>,
    /// What the guest may do without a violation.
    pub access: Access,
    /// Whether a violation waits for a verdict. Else the access is completed at once, and the event only tells of it.
    pub hold: bool,
}

impl Rule {
    /// Whether its rights are those of some hardware: whoever may write may read. Execute alone is fine.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`], as of the operation `op`: an EPT misconfiguration (Intel SDM volume 3C, 29.3.3.1).
    pub fn has_rights(&self, op: &'static str) -> Result<()> {
        if self.access.contains(Access::WRITE) && !self.access.contains(Access::READ) {
            let why = format!("no hardware has {}: whoever may write may read", self.access);
            return Err(Error::new(ErrorKind::Invalid, op, why));
        }
        Ok(())
    }

    /// Whether its frames are all RAM, maybe of several regions side by side.
    ///
    /// # Errors
    /// Of the operation `op`: [`ErrorKind::Invalid`] without a frame, [`ErrorKind::NotFound`] with one that is no RAM.
    pub fn in_ram(&self, map: &MemoryMap, op: &'static str) -> Result<()> {
        let (first, behind) = (self.frames.start, self.frames.end);
        let refuse =
            |kind, why| Err(Error::new(kind, op, format!("frames {:#x}-{:#x} {why}", first.0, behind.0)));
        if first >= behind {
            return refuse(ErrorKind::Invalid, "are none");
        }
        let Some((start, end)) = first.gpa().zip(behind.gpa()) else {
            return refuse(ErrorKind::NotFound, "have no address");
        };
        let mut at = start;
        while at < end {
            match map.at(at) {
                Span::Region(region) if region.kind == RegionKind::Ram => at = region.end,
                _ => {
                    let why =
                        format!("{start}-{end} is not all RAM: {at} is none; mem.map shows where there is");
                    return Err(Error::new(ErrorKind::NotFound, op, why));
                }
            }
        }
        Ok(())
    }
}

/// Whether the rules of each view come in ascending order and don't overlap.
///
/// # Errors
/// [`ErrorKind::Invalid`], as of the operation `op`.
pub fn in_order(rules: &[Rule], op: &'static str) -> Result<()> {
    let mut ends: BTreeMap<u32, u64> = BTreeMap::new();
    for rule in rules {
        let end = ends.entry(rule.view.0).or_default();
        if rule.frames.start.0 < *end {
            let why = format!("the rules of view {} overlap or are out of order", rule.view.0);
            return Err(Error::new(ErrorKind::Invalid, op, why));
        }
        *end = rule.frames.end.0;
    }
    Ok(())
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

/// SLAT views. Calls are posted, but for [`Views::current`]. What a call sets is undone by setting it back; a driver
/// that is dropped undoes all.
pub trait Views: Send + Sync {
    /// Makes a view that shows what the default view shows, with all rights.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NoSpace`] at the limit.
    fn create(&self) -> Result<ViewId>;

    /// Removes a view with its rules, remaps and private copies. Its number may be used again.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Busy`] while a vCPU runs on it, [`crate::ErrorKind::Invalid`] for the default view,
    /// [`crate::ErrorKind::NotFound`] for a view that is not there.
    fn destroy(&self, view: ViewId) -> Result<()>;

    /// Changes what a view shows at a frame. [`Remap::Copy`] of a frame that is a private copy already changes nothing.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] for a view that is not there or a frame outside RAM, [`crate::ErrorKind::Invalid`]
    /// for the default view, [`crate::ErrorKind::NoSpace`] where no more copies can be had.
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

    /// Reads physical memory as a view shows it; the contract of [`crate::Memory::read`], within one frame.
    ///
    /// # Errors
    /// As there, and [`crate::ErrorKind::NotFound`] for a view that is not there.
    fn read(&self, view: ViewId, gpa: Gpa, buf: &mut [u8]) -> Result<usize>;

    /// Writes physical memory as a view shows it; the contract of [`crate::Memory::write`], within one frame.
    ///
    /// # Errors
    /// As [`Views::read`].
    fn write(&self, view: ViewId, gpa: Gpa, data: &[u8]) -> Result<usize>;
}
