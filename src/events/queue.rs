//! The records of one controlling file. Those that are held are never lost.

use std::collections::VecDeque;

use parking_lot::Mutex;

use super::record::{Item, Record};
use super::stats::Stats;
use super::wake::Waker;

/// How many records wait for a controller that does not read, beside those that are held.
const RECORDS: usize = 4096;

/// The records that a controlling file has not read yet.
#[derive(Default)]
pub struct Queue(Mutex<State>);

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    waker: Option<Waker>,
    ended: bool,
}

impl Queue {
    /// Adds a record. `held` tells which numbers are.
    pub fn push(&self, record: Record, held: &dyn Fn(u64) -> bool, stats: &Stats, wake: &mut Vec<Waker>) {
        let mut state = self.0.lock();
        if state.items.len() >= RECORDS {
            state.lose(held, stats);
        }
        state.items.push_back(Item::Event { record, held: held(record.seq) });
        wake.extend(state.waker.take());
    }

    /// Takes up to `most` items. Where there are none it keeps who waits, and returns whether there will be some.
    pub fn take(&self, most: usize, into: &mut impl Extend<Item>, wait: Option<Waker>) -> bool {
        let mut state = self.0.lock();
        let most = most.min(state.items.len());
        if most > 0 {
            into.extend(state.items.drain(..most));
            if state.items.is_empty() {
                // An idle controller keeps no room.
                state.items = VecDeque::new();
            }
            return true;
        }
        if wait.is_some() && !state.ended {
            state.waker = wait;
        }
        !state.ended
    }

    /// Nothing more will come.
    pub fn end(&self, wake: &mut Vec<Waker>) {
        let mut state = self.0.lock();
        state.ended = true;
        wake.extend(state.waker.take());
    }
}

impl State {
    /// Makes room: the oldest record that is not held becomes part of what is lost.
    fn lose(&mut self, held: &dyn Fn(u64) -> bool, stats: &Stats) {
        let oldest = self.items.iter().enumerate().find_map(|(at, item)| match item {
            Item::Event { record, .. } if !held(record.seq) => Some((at, *record)),
            _ => None,
        });
        let Some((at, record)) = oldest else { return };
        stats.of(record.event.kind).lost.add(1);
        let before = at.checked_sub(1).and_then(|at| self.items.get_mut(at));
        if let Some(Item::Lost { last, .. }) = before {
            *last = record.seq;
            self.items.remove(at);
        } else if let Some(item) = self.items.get_mut(at) {
            *item = Item::Lost { first: record.seq, last: record.seq };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmtree_api::events::{Detail, Event, EventKind};
    use vmtree_api::{VcpuId, ViewId};

    #[test]
    fn a_controller_that_does_not_read_loses_only_what_it_does_not_hold() {
        let (queue, stats, kind) = (Queue::default(), Stats::default(), EventKind::SingleStep);
        let event =
            Event { vcpu: VcpuId(0), view: ViewId(0), kind, rip: 0, cr3: 0, detail: Detail::SingleStep };
        for seq in 1..=10_000 {
            // Those behind the first have timed out.
            queue.push(Record { seq, time: 0, event }, &|seq| seq == 1, &stats, &mut Vec::new());
        }
        let mut items = Vec::new();
        assert!(queue.take(usize::MAX, &mut items, None));
        assert!(matches!(items[0], Item::Event { record: Record { seq: 1, .. }, held: true }));
        let lost = 10_000 - items.len() as u64 + 1;
        assert_eq!(items[1], Item::Lost { first: 2, last: 1 + lost });
        assert!((RECORDS..RECORDS + 2).contains(&items.len()), "{}", items.len());
    }
}
