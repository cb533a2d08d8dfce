//! What a reader of an event file gets.

use vmtree_api::events::Event;

/// An event with its number and time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Record {
    /// Its number, counted over all kinds of a mount from 1 on.
    pub seq: u64,
    /// When it was taken from the driver, in ns of CLOCK_MONOTONIC.
    pub time: u64,
    /// What happened.
    pub event: Event,
}

/// One record of an event file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Item {
    /// An event; `held` where its vCPU waits for this reader's answer.
    Event {
        /// What happened.
        record: Record,
        /// Whether it waits for an answer.
        held: bool,
    },
    /// Records that the reader was too slow for, by their numbers, both included. Not all in between need be its own.
    Lost {
        /// The first number that may have been lost.
        first: u64,
        /// The last one.
        last: u64,
    },
}
