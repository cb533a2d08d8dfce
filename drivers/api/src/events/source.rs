//! Where events come from: what a driver offers, what is wanted of it, and injection.

use std::time::Duration;

use super::{Action, EventKind, Held, Inject, Way};
use crate::views::Rule;
use crate::{Missing, Result, VcpuId};

/// What a driver offers of one kind.
#[derive(Clone, Debug)]
pub struct EventOffer {
    /// The kind.
    pub kind: EventKind,
    /// For each of [`EventKind::ways`] whether it is seen.
    pub ways: Vec<(Way, std::result::Result<(), Missing>)>,
    /// For each of [`Action::ALL`] whether a held event takes it, where the contract has it for this kind at all;
    /// [`Action::Continue`] always.
    pub actions: Vec<(Action, std::result::Result<(), Missing>)>,
    /// What is not seen of [`EventKind::parts`]; the rest is.
    pub gaps: Vec<(&'static str, Missing)>,
}

/// One wanted interception of any kind but slat, for which there are rules; fields that are `None` match all.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Watch {
    /// The kind.
    pub kind: EventKind,
    /// In this way alone.
    pub way: Option<Way>,
    /// On this vCPU alone.
    pub vcpu: Option<VcpuId>,
    /// This MSR, debug register or interrupt vector alone. `None` for [`EventKind::Msr`]: the driver's default set.
    pub index: Option<u32>,
    /// Whether the vCPU waits for a verdict. Else it goes on at once, and the event only tells of it.
    pub hold: bool,
}

/// All that is wanted of a driver.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Wanted {
    /// The interceptions; an event that several match is raised once, and held if one of them holds.
    pub watches: Vec<Watch>,
    /// The SLAT permissions: for each view ranges of frames that don't overlap, in ascending order. A violation raises
    /// [`EventKind::Slat`].
    pub rules: Vec<Rule>,
}

/// The source of events.
pub trait EventSource: Send + Sync {
    /// What is offered, a row a kind; a kind without a row is not there at all.
    fn offers(&self) -> &[EventOffer];

    /// Replaces all that is wanted; [`Wanted::default`] is the undo. Events that are held stay so. Posted.
    ///
    /// # Errors
    /// What is wanted is as it was. [`crate::ErrorKind::Invalid`] for rights that the hardware lacks,
    /// [`crate::ErrorKind::NotFound`] for a rule outside RAM, [`crate::ErrorKind::Unsupported`] for a kind or way that is
    /// not offered.
    fn watch(&self, wanted: &Wanted) -> Result<()>;

    /// The next event, in the order in which they happened on each vCPU; `None` when `timeout` is over. Called by one
    /// thread.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Gone`] where the VM is.
    fn next(&self, timeout: Duration) -> Result<Option<Held>>;
}

/// Injection into a vCPU.
pub trait Injection: Send + Sync {
    /// Makes `what` happen to `vcpu` as soon as it can take it. Posted. What is injected raises no event of its own.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Busy`] while another injection waits, [`crate::ErrorKind::Invalid`] for a vector that
    /// has no such error code, [`crate::ErrorKind::NotFound`] for a vCPU that is not there.
    fn inject(&self, vcpu: VcpuId, what: Inject) -> Result<()>;
}
