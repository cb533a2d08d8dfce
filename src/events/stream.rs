//! The rings of all kinds, and the observers that read from them.

use std::sync::Arc;

use parking_lot::Mutex;
use vmtree_api::events::EventKind;

use super::filter::Filter;
use super::record::{Item, Record};
use super::ring::{RECORDS, Ring};
use super::stats::{KINDS, Stats};
use super::wake::Waker;

/// The most records that one look goes through before others get the lock.
const LOOK: usize = 4096;

/// Who waits for one observing file.
pub struct Parked {
    filter: Filter,
    /// There while it is on its list of the stream.
    waker: Mutex<Option<Waker>>,
}

impl Parked {
    /// Nobody waits yet.
    pub fn new(filter: Filter) -> Arc<Self> {
        Arc::new(Self { filter, waker: Mutex::default() })
    }

    /// Its list: that of its kind, or the one of `all`.
    fn list(&self) -> usize {
        self.filter.kind.map_or(KINDS, |kind| kind as usize)
    }

    fn take(&self, wake: &mut Vec<Waker>) {
        wake.extend(self.waker.lock().take());
    }
}

/// How far an observer has read.
pub struct Cursor {
    /// All numbers before this one have been dealt with.
    next: u64,
    /// Up to here, numbers that the rings don't have were lost.
    lost_to: u64,
    /// The place in the ring of each kind that it reads.
    at: Vec<(EventKind, u64)>,
}

struct Used {
    ring: Ring,
    /// How many open files read from it.
    by: usize,
}

/// The rings of all kinds. A ring is there while an open file reads from it.
pub struct Stream {
    rings: [Option<Used>; KINDS],
    records: usize,
    /// The files that somebody waits for, by kind; those of `all` last.
    waiting: [Vec<Arc<Parked>>; KINDS + 1],
    /// The last number given.
    seq: u64,
    ended: bool,
}

impl Default for Stream {
    fn default() -> Self {
        Self::of(RECORDS)
    }
}

impl Stream {
    /// Rings of `records` each.
    pub fn of(records: usize) -> Self {
        Self {
            rings: [const { None }; KINDS],
            records,
            waiting: [const { Vec::new() }; KINDS + 1],
            seq: 0,
            ended: false,
        }
    }

    /// The number of the next record.
    pub fn number(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    /// A cursor over these kinds, from now on.
    pub fn open(&mut self, kinds: &[EventKind]) -> Cursor {
        let records = self.records;
        let mut at = Vec::with_capacity(kinds.len());
        for kind in kinds {
            let used =
                self.rings[*kind as usize].get_or_insert_with(|| Used { ring: Ring::new(records), by: 0 });
            used.by += 1;
            at.push((*kind, used.ring.end()));
        }
        Cursor { next: self.seq + 1, lost_to: 0, at }
    }

    /// Ends a cursor, and those who wait for it.
    pub fn close(&mut self, cursor: &mut Cursor, parked: &Arc<Parked>, wake: &mut Vec<Waker>) {
        for (kind, _) in cursor.at.drain(..) {
            let ring = &mut self.rings[kind as usize];
            let last = ring.as_mut().is_some_and(|used| {
                used.by -= 1;
                used.by == 0
            });
            if last {
                *ring = None;
            }
        }
        if parked.waker.lock().is_some() {
            self.waiting[parked.list()].retain(|other| !Arc::ptr_eq(other, parked));
        }
        parked.take(wake);
    }

    /// Adds a record, and hands over those who wait for it.
    pub fn publish(&mut self, record: Record, wake: &mut Vec<Waker>) {
        let kind = record.event.kind as usize;
        if let Some(used) = &mut self.rings[kind] {
            used.ring.push(record);
        }
        for list in [kind, KINDS] {
            self.waiting[list].retain(|parked| {
                let wanted = parked.filter.matches(&record.event);
                if wanted {
                    parked.take(wake);
                }
                !wanted
            });
        }
    }

    /// Takes up to `most` items into `into`. Returns whether there is nothing more for now.
    pub fn take(
        &self,
        cursor: &mut Cursor,
        filter: &Filter,
        most: usize,
        into: &mut impl Extend<Item>,
        stats: &Stats,
    ) -> bool {
        self.overtaken(cursor, stats);
        let mut taken = 0;
        for _ in 0..LOOK {
            if taken >= most {
                return false;
            }
            let next = self.oldest(cursor);
            let until = next.map_or(u64::MAX, |(_, record)| record.seq - 1).min(cursor.lost_to);
            if until >= cursor.next {
                into.extend([Item::Lost { first: cursor.next, last: until }]);
                cursor.next = until + 1;
                taken += 1;
                continue;
            }
            let Some((place, record)) = next else { return true };
            let record = *record;
            cursor.next = record.seq + 1;
            if let Some((_, at)) = cursor.at.get_mut(place) {
                *at += 1;
            }
            if filter.matches(&record.event) {
                into.extend([Item::Event { record, held: false }]);
                taken += 1;
            }
        }
        false
    }

    /// Moves a cursor on over what was overwritten.
    fn overtaken(&self, cursor: &mut Cursor, stats: &Stats) {
        for (kind, at) in &mut cursor.at {
            let Some(used) = &self.rings[*kind as usize] else { continue };
            if *at < used.ring.start() {
                stats.of(*kind).lost.add(used.ring.start() - *at);
                *at = used.ring.start();
                cursor.lost_to = cursor.lost_to.max(used.ring.overwritten());
            }
        }
    }

    /// The record with the lowest number of those that a cursor is before, and which of its rings has it.
    fn oldest(&self, cursor: &Cursor) -> Option<(usize, &Record)> {
        let record = |(kind, at): &(EventKind, u64)| self.rings[*kind as usize].as_ref()?.ring.get(*at);
        let all = cursor.at.iter().enumerate();
        all.filter_map(|(place, at)| Some((place, record(at)?))).min_by_key(|(_, record)| record.seq)
    }

    /// Keeps who waits, in place of the one before. In one hold of the lock with the look that found nothing.
    pub fn park(&mut self, parked: &Arc<Parked>, waker: Waker) {
        let before = parked.waker.lock().replace(waker);
        if before.is_none() {
            self.waiting[parked.list()].push(parked.clone());
        }
    }

    /// Ends the stream for all; what is in the rings can still be read.
    pub fn end(&mut self, wake: &mut Vec<Waker>) {
        self.ended = true;
        for parked in self.waiting.iter_mut().flat_map(|list| list.drain(..)) {
            parked.take(wake);
        }
    }

    /// Whether nothing more will come.
    pub fn ended(&self) -> bool {
        self.ended
    }
}
