//! What is wanted, as what Xen is told to raise, and who is told of what it raises.

use std::collections::BTreeSet;

use vmtree_api::events::{Detail, Event, EventKind, Move, Wanted, Watch, Way};
use vmtree_api::views::Rule;
use vmtree_api::{Access, Gpa};

use super::wire::control;
use crate::hypervisor::Intercept;
use crate::registers::msrs::WATCHED;

/// What an event is for those who want events.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Interest {
    /// Nobody wants it.
    None,
    /// It is told, and its vCPU goes on.
    Tell,
    /// Its vCPU waits for a verdict.
    Hold,
}

/// All that is wanted.
#[derive(Clone, Debug, Default)]
pub struct Armed {
    wanted: Wanted,
}

fn control(watch: &Watch) -> Option<u16> {
    let index = match watch.kind {
        EventKind::Cr0 => control::CR0,
        EventKind::Cr3 => control::CR3,
        EventKind::Cr4 => control::CR4,
        EventKind::Xcr0 => control::XCR0,
        _ => return None,
    };
    (watch.way != Some(Way::From)).then_some(index as u16)
}

impl Armed {
    /// These.
    #[must_use]
    pub fn new(wanted: Wanted) -> Self {
        Self { wanted }
    }

    /// All of it.
    #[must_use]
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Whether nothing is wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.wanted.watches.is_empty() && self.wanted.rules.is_empty()
    }

    /// Whether writes of control registers or MSRs are to wait for their answers.
    #[must_use]
    pub fn holds_writes(&self) -> bool {
        let holds = |watch: &&Watch| watch.hold;
        self.wanted
            .watches
            .iter()
            .filter(holds)
            .any(|watch| control(watch).is_some() || watch.kind == EventKind::Msr)
    }

    /// What Xen is to be told to raise.
    #[must_use]
    pub fn intercepts(&self) -> BTreeSet<Intercept> {
        let mut all = BTreeSet::new();
        for watch in &self.wanted.watches {
            match (control(watch), watch.kind) {
                (Some(index), _) => {
                    // Of several watches of a register one that holds decides.
                    if watch.hold {
                        all.remove(&Intercept::Control { index, wait: false });
                    }
                    let waits = watch.hold || all.contains(&Intercept::Control { index, wait: true });
                    all.insert(Intercept::Control { index, wait: waits });
                }
                (_, EventKind::Msr) => {
                    let all_watched = if watch.index.is_none() { WATCHED } else { &[] };
                    all.extend(watch.index.iter().chain(all_watched).map(|index| Intercept::Msr(*index)));
                }
                (_, EventKind::Breakpoint) => drop(all.insert(Intercept::Breakpoint)),
                (_, EventKind::SingleStep) => drop(all.insert(Intercept::Step)),
                (_, EventKind::Cpuid) => drop(all.insert(Intercept::Cpuid)),
                (_, EventKind::Io) => drop(all.insert(Intercept::Io)),
                (_, EventKind::Descriptor) => drop(all.insert(Intercept::Descriptor)),
                (_, EventKind::GuestRequest) => drop(all.insert(Intercept::GuestRequest)),
                _ => {}
            }
        }
        all
    }

    /// The vCPUs, among so many, that are to stop behind each instruction.
    #[must_use]
    pub fn stepped(&self, vcpus: u32) -> BTreeSet<u32> {
        let steps = self.wanted.watches.iter().filter(|watch| watch.kind == EventKind::SingleStep);
        steps.flat_map(|watch| watch.vcpu.map_or(0..vcpus, |vcpu| vcpu.0..vcpu.0.saturating_add(1))).collect()
    }

    /// What an event is for those who want events.
    #[must_use]
    pub fn interest(&self, event: &Event) -> Interest {
        let holds: Vec<bool> = match event.detail {
            Detail::Slat { access, gpa, .. } => {
                let meant = self.wanted.rules.iter().filter(|rule| violates(rule, event, access, gpa));
                meant.map(|rule| rule.hold).collect()
            }
            _ => {
                let meant = self.wanted.watches.iter().filter(|watch| matches(watch, event));
                meant.map(|watch| watch.hold).collect()
            }
        };
        match (holds.is_empty(), holds.contains(&true)) {
            (true, _) => Interest::None,
            (_, true) => Interest::Hold,
            _ => Interest::Tell,
        }
    }
}

fn violates(rule: &Rule, event: &Event, access: Access, gpa: Gpa) -> bool {
    rule.view == event.view && rule.frames.contains(&gpa.gfn()) && !rule.access.contains(access)
}

fn matches(watch: &Watch, event: &Event) -> bool {
    let index = match event.detail {
        Detail::Msr { index, .. } => Some(index),
        Detail::Debug { reg, .. } => Some(u32::from(reg)),
        _ => None,
    };
    // Without an index MSRs are the default set; what else is armed is so for somebody else.
    let default = event.kind != EventKind::Msr || index.is_some_and(|index| WATCHED.contains(&index));
    watch.kind == event.kind
        && watch.way.is_none_or(|way| way == event.way())
        && watch.vcpu.is_none_or(|vcpu| vcpu == event.vcpu)
        && watch.index.map_or(default, |wanted| Some(wanted) == index)
}

/// The value that a write of a control register or an MSR would put there.
#[must_use]
pub fn written(event: &Event) -> Option<u64> {
    match event.detail {
        Detail::Control(Move::To { new, .. }) | Detail::Msr { access: Move::To { new, .. }, .. } => Some(new),
        _ => None,
    }
}
