//! One view.

use std::collections::HashMap;

use vmtree_api::Access;
use vmtree_api::views::Rule;

use super::{COPY, Spot};

/// What one view shows, and its rules.
#[derive(Debug, Default)]
pub struct View {
    /// Places of frames that it shows differently, by address.
    remaps: HashMap<u64, u64>,
    /// In ascending order.
    rules: Vec<Rule>,
}

impl View {
    /// What it has at the frame with this address.
    pub fn spot(&self, frame: u64) -> Spot {
        let gfn = frame >> 12;
        let place = self.remaps.get(&frame).copied().unwrap_or(frame);
        let after = self.rules.partition_point(|rule| rule.frames.start.0 <= gfn);
        let rule = after.checked_sub(1).and_then(|index| self.rules.get(index));
        match rule.filter(|rule| gfn < rule.frames.end.0) {
            Some(rule) => Spot { frame: place, rights: rule.access, hold: rule.hold },
            None => Spot { frame: place, rights: Access::ALL, hold: false },
        }
    }

    /// Shows another place, or its own.
    pub fn remap(&mut self, frame: u64, place: Option<u64>) {
        match place {
            Some(place) => self.remaps.insert(frame, place),
            None => self.remaps.remove(&frame),
        };
    }

    /// Replaces its rules.
    pub fn set_rules(&mut self, rules: Vec<Rule>) {
        self.rules = rules;
    }

    /// The places of its private copies.
    pub fn copies(&self) -> impl Iterator<Item = u64> {
        self.remaps.values().copied().filter(|place| place & COPY != 0)
    }
}
