//! Hardware events, what can be answered to them, and injection.

mod held;
mod source;
mod verdict;

use std::fmt;

use crate::{Access, Gpa, Gva, VcpuId, ViewId};

pub use held::{Held, Refused};
pub use source::{EventOffer, EventSource, Injection, Wanted, Watch};
pub use verdict::{Action, Inject, Verdict};

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

/// A way in which a kind of event happens. A driver offers each, or says why not.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Way {
    /// The kind has no direction: it just happens.
    Once,
    /// The guest moves a value to it: a register write, a port write, a load of a descriptor-table register.
    To,
    /// The guest moves a value from it: a register read, a port read, a store of a descriptor-table register.
    From,
    /// A data read, of slat.
    Read,
    /// A data write, of slat.
    Write,
    /// An instruction fetch, of slat.
    Execute,
}

impl Way {
    /// Its name in `capabilities`; empty for [`Way::Once`].
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Once => "",
            Self::To => "to",
            Self::From => "from",
            Self::Read => "r",
            Self::Write => "w",
            Self::Execute => "x",
        }
    }
}

impl EventKind {
    /// What belongs to this kind in every way, and not every driver sees: `ptwalk` is the vCPU's own walks through the page tables.
    #[must_use]
    pub fn parts(self) -> &'static [&'static str] {
        match self {
            Self::Slat => &["ptwalk"],
            _ => &[],
        }
    }

    /// The ways in which this kind can happen.
    #[must_use]
    pub fn ways(self) -> &'static [Way] {
        match self {
            Self::Cr0 | Self::Cr3 | Self::Cr4 | Self::Cr8 | Self::Dr | Self::Msr => &[Way::To, Way::From],
            Self::Io | Self::Descriptor => &[Way::To, Way::From],
            // XGETBV has no intercept (Intel SDM volume 3C, 26.1.3; AMD APM volume 2, 15.9).
            Self::Xcr0 => &[Way::To],
            Self::Slat => &[Way::Read, Way::Write, Way::Execute],
            Self::Interrupt | Self::Breakpoint | Self::SingleStep | Self::Cpuid | Self::GuestRequest => {
                &[Way::Once]
            }
        }
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

/// A register that names a descriptor table or a task.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(missing_docs, reason = "the variants bear the manual's names")]
pub enum DescriptorTable {
    Gdtr,
    Idtr,
    Ldtr,
    Tr,
}

/// What happened, beside what every event tells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
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
    /// `vector` is `None` where the driver sees the delivery and can't tell of which vector it is.
    Interrupt {
        vector: Option<u8>,
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
    /// `value` is what the guest writes; a read has none yet.
    Io {
        port: u16,
        bytes: u8,
        value: Option<u32>,
    },
    /// `way` is [`Way::To`] for LGDT, LIDT, LLDT and LTR, [`Way::From`] for SGDT, SIDT, SLDT and STR.
    Descriptor {
        table: DescriptorTable,
        way: Way,
    },
    GuestRequest,
}

/// An event, taken at the instruction that caused it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Event {
    /// The vCPU it happened on.
    pub vcpu: VcpuId,
    /// The view that vCPU ran on.
    pub view: ViewId,
    /// Its kind.
    pub kind: EventKind,
    /// The address of the instruction that is about to do it; of the next one for [`EventKind::SingleStep`], and of
    /// the interrupted one for an external interrupt.
    pub rip: u64,
    /// The address space it ran in.
    pub cr3: u64,
    /// What happened.
    pub detail: Detail,
}

impl Event {
    /// The way in which it happened.
    #[must_use]
    pub fn way(&self) -> Way {
        match &self.detail {
            Detail::Control(access) | Detail::Debug { access, .. } | Detail::Msr { access, .. } => {
                match access {
                    Move::To { .. } => Way::To,
                    Move::From { .. } => Way::From,
                }
            }
            Detail::Io { value: Some(_), .. } => Way::To,
            Detail::Io { value: None, .. } => Way::From,
            Detail::Descriptor { way, .. } => *way,
            Detail::Slat { access, .. } if access.contains(Access::EXECUTE) => Way::Execute,
            Detail::Slat { access, .. } if access.contains(Access::WRITE) => Way::Write,
            Detail::Slat { .. } => Way::Read,
            Detail::Interrupt { .. }
            | Detail::Breakpoint { .. }
            | Detail::SingleStep
            | Detail::Cpuid { .. }
            | Detail::GuestRequest => Way::Once,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names_of_their_own() {
        let mut names: Vec<_> = EventKind::ALL.iter().map(|kind| kind.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), EventKind::ALL.len());
    }
}
