//! What becomes of a held event, and what can be injected.

use crate::{Error, ErrorKind, Gva, RegId, RegValue, Result, ViewId};

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

/// The exceptions that push an error code (Intel SDM volume 3A, table 6-1).
const WITH_ERROR: &[u8] = &[8, 10, 11, 12, 13, 14, 17, 21];
const NMI: u8 = 2;

impl Inject {
    /// The vector of a page fault.
    pub const PAGE_FAULT: u8 = 14;

    /// Whether it can be injected at all: what a VM entry checks (Intel SDM volume 3C, 27.2.1.3).
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`], as of the operation `op`.
    pub fn check(self, op: &'static str) -> Result<()> {
        let refuse = |why: String| Err(Error::new(ErrorKind::Invalid, op, why));
        let (vector, error) = match self {
            Self::PageFault { error, .. } => (Self::PAGE_FAULT, Some(error)),
            Self::Exception { vector, error } => (vector, error),
            Self::Interrupt { .. } | Self::Nmi => return Ok(()),
        };
        if vector > 31 {
            return refuse(format!("{vector} is no exception: they are 0 to 31; inject it as an interrupt"));
        }
        if vector == NMI {
            return refuse("vector 2 is no exception; inject nmi".to_owned());
        }
        match (WITH_ERROR.contains(&vector), error) {
            (true, None) => refuse(format!("exception {vector} has an error code; give err=CODE")),
            (false, Some(_)) => refuse(format!("exception {vector} has no error code")),
            (true, Some(error)) if error >> 16 != 0 => {
                refuse(format!("the error code {error:#x} has more than 16 bits"))
            }
            _ => Ok(()),
        }
    }
}

/// What becomes of a held event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// What would have happened had nobody watched.
    Continue,
    /// It does not take place. A read or fetch that violates a SLAT permission, which can't just not take place, gets
    /// #PF at its virtual address, present and with the right that it lacked. A driver that lacks something for it now
    /// refuses it; where it comes once more it takes place without that, whatever else of the instruction is lost.
    Deny,
    /// It takes place with another value. CPUID's result has EAX in its lowest 32 bits, then EBX, ECX and EDX; data of
    /// a memory access are little-endian.
    Value(u128),
    /// Registers are set, then it continues.
    Set(Vec<(RegId, RegValue)>),
    /// One instruction on a view, then back.
    Step(Option<ViewId>),
    /// The vCPU goes on on another view.
    View(ViewId),
    /// A fault or exception instead of it, at the same instruction. Interrupts and NMIs are made pending, and it
    /// continues.
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

impl Action {
    /// Every action, in the order of the contract.
    pub const ALL: &[Self] =
        &[Self::Continue, Self::Deny, Self::Value, Self::Set, Self::Step, Self::View, Self::Inject];

    /// Its word in an answer.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Continue => "continue",
            Self::Deny => "deny",
            Self::Value => "value",
            Self::Set => "set",
            Self::Step => "step",
            Self::View => "view",
            Self::Inject => "inject",
        }
    }
}

impl Verdict {
    /// Which action it is.
    #[must_use]
    pub fn action(&self) -> Action {
        match self {
            Self::Continue => Action::Continue,
            Self::Deny => Action::Deny,
            Self::Value(_) => Action::Value,
            Self::Set(_) => Action::Set,
            Self::Step(_) => Action::Step,
            Self::View(_) => Action::View,
            Self::Inject(_) => Action::Inject,
        }
    }
}
