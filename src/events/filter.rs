//! Which events an event file is of.

use std::ops::Range;

use vmtree_api::events::{Detail, Event, EventKind, Way};
use vmtree_api::{Access, Gpa, VcpuId};

/// How an event file shows its records.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Format {
    /// A line of `key=value` words each.
    #[default]
    Text,
    /// A line of JSON each (JSON Lines).
    Json,
    /// Fixed little-endian structs.
    Binary,
}

/// How an event file is open.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Read-only: the guest never waits.
    Observe,
    /// Read-write: the vCPU waits at each event for an answer.
    Control,
}

/// Which events an event file is of, as its name says; `None` matches all.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Filter {
    /// The kind; `None` for the file `all`.
    pub kind: Option<EventKind>,
    /// On this vCPU alone.
    pub vcpu: Option<VcpuId>,
    /// This MSR, debug register or interrupt vector alone.
    pub index: Option<u32>,
    /// In this way alone, for kinds with a direction.
    pub way: Option<Way>,
    /// Of slat: at these addresses alone, end excluded. Then the file is itself a rule.
    pub gpa: Option<Range<Gpa>>,
    /// Of slat: these accesses alone.
    pub access: Option<Access>,
}

impl Filter {
    /// The filter of a whole kind.
    #[must_use]
    pub fn of(kind: EventKind) -> Self {
        Self { kind: Some(kind), ..Self::default() }
    }

    /// Whether an event is one of this file's.
    #[must_use]
    pub fn matches(&self, event: &Event) -> bool {
        let fits = |wanted: Option<bool>| wanted.unwrap_or(true);
        fits(self.kind.map(|kind| kind == event.kind))
            && fits(self.vcpu.map(|vcpu| vcpu == event.vcpu))
            && fits(self.index.map(|index| Some(index) == index_of(&event.detail)))
            && fits(self.way.map(|way| way == event.way()))
            && self.matches_access(&event.detail)
    }

    fn matches_access(&self, detail: &Detail) -> bool {
        let Detail::Slat { access, gpa, .. } = detail else { return true };
        self.gpa.as_ref().is_none_or(|range| range.contains(gpa))
            && self.access.is_none_or(|wanted| share(wanted, *access))
    }

    /// Whether some event could match both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        fn both<T: PartialEq>(a: &Option<T>, b: &Option<T>) -> bool {
            a.is_none() || b.is_none() || a == b
        }
        let ranges = match (&self.gpa, &other.gpa) {
            (Some(a), Some(b)) => a.start < b.end && b.start < a.end,
            _ => true,
        };
        let accesses = match (self.access, other.access) {
            (Some(a), Some(b)) => share(a, b) || (share(a, DATA) && share(b, DATA)),
            _ => true,
        };
        both(&self.kind, &other.kind)
            && both(&self.vcpu, &other.vcpu)
            && both(&self.index, &other.index)
            && both(&self.way, &other.way)
            && ranges
            && accesses
    }
}

/// One instruction can do both, which is then one event.
const DATA: Access = Access::READ.union(Access::WRITE);

/// Whether a right is in both sets: an instruction that reads and writes is for `access=r` and for `access=w`.
fn share(a: Access, b: Access) -> bool {
    a.without(b) != a
}

/// What `index=` and `vector=` select by.
fn index_of(detail: &Detail) -> Option<u32> {
    match detail {
        Detail::Msr { index, .. } => Some(*index),
        Detail::Debug { reg, .. } => Some(u32::from(*reg)),
        Detail::Interrupt { vector, .. } => vector.map(u32::from),
        _ => None,
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
