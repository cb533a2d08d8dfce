//! Hardware events, what can be answered to them, and injection.

use std::fmt;
use std::time::Duration;

use crate::views::Rule;
use crate::{Access, Gpa, Gva, Missing, RegId, RegValue, Result, VcpuId, ViewId};

/// The kinds of event: a closed set. A driver offers part of it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[allow(missing_docs, reason = "the variants bear the names of the event files")]
pub enum EventKind {
    Cr0,
    Cr3,
    Cr4,
    Cr8,
    Xcr0,
    Dr,
    Msr,
    Interrupt,
    Breakpoint,
    SingleStep,
    Slat,
    Cpuid,
    Io,
    Descriptor,
    GuestRequest,
}

impl EventKind {
    /// Every kind, in the order of the contract.
    pub const ALL: &[Self] = &[
        Self::Cr0,
        Self::Cr3,
        Self::Cr4,
        Self::Cr8,
        Self::Xcr0,
        Self::Dr,
        Self::Msr,
        Self::Interrupt,
        Self::Breakpoint,
        Self::SingleStep,
        Self::Slat,
        Self::Cpuid,
        Self::Io,
        Self::Descriptor,
        Self::GuestRequest,
    ];

    /// Its name, which is the name of its file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cr0 => "cr0",
            Self::Cr3 => "cr3",
            Self::Cr4 => "cr4",
            Self::Cr8 => "cr8",
            Self::Xcr0 => "xcr0",
            Self::Dr => "dr",
            Self::Msr => "msr",
            Self::Interrupt => "interrupt",
            Self::Breakpoint => "breakpoint",
            Self::SingleStep => "singlestep",
            Self::Slat => "slat",
            Self::Cpuid => "cpuid",
            Self::Io => "io",
            Self::Descriptor => "descriptor",
            Self::GuestRequest => "guest_request",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A move to or from a register.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Move {
    /// The guest writes it.
    To {
        /// Its value before.
        old: u64,
        /// The value written.
        new: u64,
    },
    /// The guest reads it.
    From {
        /// The value it is about to get.
        value: u64,
    },
}

/// The types of interruption, in the manual's terms (Intel SDM volume 3C, 25.8.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(missing_docs, reason = "the variants bear the manual's names")]
pub enum InterruptType {
    External,
    Nmi,
    HardwareException,
    SoftwareInterrupt,
    PrivilegedSoftwareException,
    SoftwareException,
}

/// What happened, beside what every event tells.
#[derive(Clone, Debug, Eq, PartialEq)]
#[allow(missing_docs, reason = "the fields bear the contract's names")]
pub enum Detail {
    /// cr0, cr3, cr4, cr8, xcr0.
    Control(Move),
    Debug {
        reg: u8,
        access: Move,
    },
    Msr {
        index: u32,
        access: Move,
    },
    Interrupt {
        vector: u8,
        kind: InterruptType,
        error: Option<u32>,
        cr2: Option<u64>,
    },
    Breakpoint {
        gpa: Option<Gpa>,
        len: u8,
    },
    SingleStep,
    Slat {
        access: Access,
        gpa: Gpa,
        gva: Option<Gva>,
        page_walk: bool,
    },
    Cpuid {
        leaf: u32,
        subleaf: u32,
    },
    Io {
        port: u16,
        bytes: u8,
        access: Move,
    },
    Descriptor {
        table: &'static str,
        access: Access,
    },
    GuestRequest,
}

/// An event, taken at the instruction that caused it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Event {
    /// The vCPU it happened on.
    pub vcpu: VcpuId,
    /// The view that vCPU ran on.
    pub view: ViewId,
    /// Its kind.
    pub kind: EventKind,
    /// The instruction's address.
    pub rip: u64,
    /// The address space it ran in.
    pub cr3: u64,
    /// What happened.
    pub detail: Detail,
}

/// What can be injected into a vCPU.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Inject {
    /// A page fault: CR2 and the error code (Intel SDM volume 3A, 4.7).
    PageFault {
        /// The faulting address.
        address: Gva,
        /// The error code.
        error: u32,
    },
    /// An exception.
    Exception {
        /// Its vector, 0 to 31.
        vector: u8,
        /// Its error code, where the vector has one.
        error: Option<u32>,
    },
    /// An external interrupt; it waits until the guest takes interrupts.
    Interrupt {
        /// Its vector.
        vector: u8,
    },
    /// A non-maskable interrupt.
    Nmi,
}

/// What becomes of a held event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// What would have happened had nobody watched.
    Continue,
    /// It does not take place.
    Deny,
    /// It takes place with another value.
    Value(u64),
    /// Registers are set, then it continues.
    Set(Vec<(RegId, RegValue)>),
    /// One instruction on a view, then back.
    Step(Option<ViewId>),
    /// The vCPU goes on on another view.
    View(ViewId),
    /// A fault, exception or interrupt instead.
    Inject(Inject),
}

/// A kind of verdict, for what a driver says it can do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(missing_docs, reason = "the variants are those of Verdict")]
pub enum Action {
    Continue,
    Deny,
    Value,
    Set,
    Step,
    View,
    Inject,
}

/// An event whose vCPU stands still until it is answered. Dropped, it is answered with [`Verdict::Continue`].
#[must_use = "a vCPU stands still until its event is answered"]
pub struct Held {
    event: Event,
    reply: Option<Reply>,
}

type Reply = Box<dyn FnOnce(Verdict) -> Result<()> + Send>;

impl Held {
    /// An event that `reply` lets go.
    pub fn new(event: Event, reply: impl FnOnce(Verdict) -> Result<()> + Send + 'static) -> Self {
        Self { event, reply: Some(Box::new(reply)) }
    }

    /// What happened.
    #[must_use]
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// Lets the vCPU go with this verdict.
    ///
    /// # Errors
    /// The hypervisor did not take it; the vCPU then went on as with [`Verdict::Continue`], or is gone.
    pub fn answer(mut self, verdict: Verdict) -> Result<()> {
        match self.reply.take() {
            Some(reply) => reply(verdict),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&self.event).finish()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.take() {
            // A VM that can't be told is gone, and its vCPU with it.
            let _ = reply(Verdict::Continue);
        }
    }
}

/// What a driver offers of one kind.
#[derive(Clone, Debug)]
pub struct EventOffer {
    /// The kind.
    pub kind: EventKind,
    /// Whether moves to it, or writes, are seen.
    pub to: std::result::Result<(), Missing>,
    /// Whether moves from it, or reads, are seen.
    pub from: std::result::Result<(), Missing>,
    /// The verdicts it takes; [`Action::Continue`] always.
    pub actions: Vec<Action>,
}

/// One wanted interception; fields that are `None` match all.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Watch {
    /// The kind.
    pub kind: EventKind,
    /// On this vCPU alone.
    pub vcpu: Option<VcpuId>,
    /// This MSR or debug register alone.
    pub index: Option<u32>,
    /// These frames and accesses alone, for [`EventKind::Slat`].
    pub rule: Option<Rule>,
}

/// The source of events.
pub trait EventSource: Send + Sync {
    /// What is offered, a row a kind; a kind without a row is not there at all.
    fn offers(&self) -> &[EventOffer];

    /// Replaces the whole set of wanted interceptions; an empty one is the undo. Posted.
    ///
    /// # Errors
    /// The set is as it was.
    fn watch(&self, wanted: &[Watch]) -> Result<()>;

    /// The next event, waiting at most `timeout`; `None` when that is over. Called by one thread.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Gone`] where the VM is.
    fn next(&self, timeout: Duration) -> Result<Option<Held>>;
}

/// Injection into a vCPU.
pub trait Injection: Send + Sync {
    /// Makes `what` happen to `vcpu` as soon as it can take it. Posted.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Busy`] while another injection waits, [`crate::ErrorKind::Invalid`] for a vector that
    /// has no such error code.
    fn inject(&self, vcpu: VcpuId, what: Inject) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    fn event() -> Event {
        let detail = Detail::Control(Move::To { old: 1, new: 2 });
        Event { vcpu: VcpuId(0), view: ViewId(0), kind: EventKind::Cr3, rip: 0, cr3: 1, detail }
    }

    #[test]
    fn a_held_event_is_answered_exactly_once_on_every_path() {
        let answers = Arc::new(Mutex::new(Vec::new()));
        let held = || {
            let answers = answers.clone();
            Held::new(event(), move |verdict| {
                answers.lock().unwrap().push(verdict);
                Ok(())
            })
        };
        drop(held());
        held().answer(Verdict::Deny).unwrap();
        assert_eq!(*answers.lock().unwrap(), [Verdict::Continue, Verdict::Deny]);
    }

    #[test]
    fn kinds_have_names_of_their_own() {
        let mut names: Vec<_> = EventKind::ALL.iter().map(|kind| kind.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), EventKind::ALL.len());
    }
}
