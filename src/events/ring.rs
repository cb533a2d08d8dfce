//! The last records of one kind.

use super::record::Record;

/// How many records a ring keeps: 16384 of 104 bytes, 1.6 MiB a kind that some open file observes.
pub const RECORDS: usize = 16384;

/// The last [`RECORDS`] of one kind, by the count of records that were published before them.
pub struct Ring {
    slots: Vec<Record>,
    most: usize,
    published: u64,
    /// The number of the last record that was overwritten.
    overwritten: u64,
}

impl Ring {
    /// A ring of at most `most` records. Its memory grows with what is in it.
    pub fn new(most: usize) -> Self {
        Self { slots: Vec::new(), most, published: 0, overwritten: 0 }
    }

    /// Adds a record, over the oldest if it is full.
    pub fn push(&mut self, record: Record) {
        if self.slots.len() < self.most {
            self.slots.push(record);
        } else {
            let at = (self.published % self.most as u64) as usize;
            if let Some(slot) = self.slots.get_mut(at) {
                self.overwritten = slot.seq;
                *slot = record;
            }
        }
        self.published += 1;
    }

    /// How many were published: the place of the next one.
    pub fn end(&self) -> u64 {
        self.published
    }

    /// The place of the oldest that is still there.
    pub fn start(&self) -> u64 {
        self.published - self.slots.len() as u64
    }

    /// The number of the last record that is not there any more; 0 if all are.
    pub fn overwritten(&self) -> u64 {
        self.overwritten
    }

    /// The record at a place.
    pub fn get(&self, place: u64) -> Option<&Record> {
        if place >= self.published || place < self.start() {
            return None;
        }
        self.slots.get((place % self.most as u64) as usize)
    }
}
