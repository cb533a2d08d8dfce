//! What became of events: the file `events/stats`.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use vmtree_api::events::EventKind;

/// How many kinds there are.
pub const KINDS: usize = EventKind::ALL.len();

/// Counts of one kind since the mount began, but for `armed`.
#[derive(Default)]
pub struct Counts {
    /// Interceptions armed now; of slat: the ranges that rules trap.
    pub armed: Count,
    /// Events that came from the driver.
    pub raised: Count,
    /// Records that readers got, each reader counted.
    pub delivered: Count,
    /// Records overwritten before a reader got to them, each reader counted.
    pub lost: Count,
    /// Verdicts given by controllers.
    pub answered: Count,
    /// Held events that no verdict came for in time.
    pub timed_out: Count,
    /// SLAT violations that nobody controlled.
    pub unattended: Count,
}

/// A number that many threads raise.
#[derive(Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Raises it.
    pub fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    /// Sets it.
    pub fn set(&self, to: u64) {
        self.0.store(to, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counts of every kind.
#[derive(Default)]
pub struct Stats([Counts; KINDS]);

impl Stats {
    /// The counts of a kind.
    pub fn of(&self, kind: EventKind) -> &Counts {
        // The array has a place for each kind, in the order of their declaration.
        &self.0[kind as usize]
    }

    /// A line for each of these kinds.
    pub fn print(&self, kinds: impl Iterator<Item = EventKind>) -> String {
        let mut text = String::new();
        for kind in kinds {
            let Counts { armed, raised, delivered, lost, answered, timed_out, unattended } = self.of(kind);
            let _ = write!(text, "{kind} armed={} raised={}", armed.get(), raised.get());
            let _ = write!(text, " delivered={} lost={}", delivered.get(), lost.get());
            let _ = write!(text, " answered={} timed_out={}", answered.get(), timed_out.get());
            let _ = writeln!(text, " unattended={}", unattended.get());
        }
        text
    }
}
