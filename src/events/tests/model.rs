//! Rings and cursors against a model that keeps every record.

use std::collections::BTreeSet;

use proptest::prelude::*;
use vmtree_api::VcpuId;
use vmtree_api::events::Event;

use super::super::record::Record;
use super::super::stats::Stats;
use super::super::stream::{Cursor, Parked, Stream};
use super::*;
use mock::{cr3, msr};

/// How many records a ring of the model keeps.
const RECORDS: usize = 8;

#[derive(Clone, Debug)]
enum Step {
    Publish(Vec<(bool, u32)>),
    Open(usize, Option<u32>),
    Read(usize, usize),
    Close(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec((prop::bool::weighted(0.7), 0..3u32), 1..14).prop_map(Step::Publish),
        2 => (0..3usize, prop::option::of(0..3u32)).prop_map(|(kind, vcpu)| Step::Open(kind, vcpu)),
        6 => (0..64usize, 1..9usize).prop_map(|(file, most)| Step::Read(file, most)),
        1 => (0..64usize).prop_map(Step::Close),
    ]
}

struct Reader {
    filter: Filter,
    cursor: Cursor,
    parked: Arc<Parked>,
    /// Every record that was published for it since it was opened.
    own: Vec<u64>,
    got: Vec<u64>,
    lost: Vec<(u64, u64)>,
    opened: u64,
}

impl Reader {
    /// Takes up to `most` items and notes them. Returns whether there were none.
    fn read(&mut self, stream: &Stream, stats: &Stats, most: usize) -> bool {
        let mut items = Vec::new();
        stream.take(&mut self.cursor, &self.filter, most, &mut items, stats);
        assert!(items.len() <= most);
        for item in &items {
            match item {
                Item::Event { record, held } => {
                    assert!(!held && self.filter.matches(&record.event));
                    self.got.push(record.seq);
                }
                Item::Lost { first, last } => self.lost.push((*first, *last)),
            }
        }
        items.is_empty()
    }

    /// Every record was got or is told as lost, in order and once.
    fn check(&self) {
        assert!(self.got.is_sorted_by(|a, b| a < b), "{:?}", self.got);
        assert!(self.lost.is_sorted_by(|a, b| a.1 < b.0), "{:?}", self.lost);
        let got: BTreeSet<u64> = self.got.iter().copied().collect();
        let lost = |seq: u64| self.lost.iter().any(|(first, last)| (*first..=*last).contains(&seq));
        for seq in &self.own {
            assert!(
                got.contains(seq) != lost(*seq),
                "{seq} of {:?}: {:?} {:?}",
                self.own,
                self.got,
                self.lost
            );
        }
        assert!(got.iter().all(|seq| self.own.contains(seq)));
        assert!(self.lost.iter().all(|(first, last)| first <= last && *first > self.opened));
    }
}

struct World {
    stream: Stream,
    stats: Stats,
    readers: Vec<Reader>,
}

impl World {
    fn publish(&mut self, event: Event) {
        let seq = self.stream.number();
        let mut wake = Vec::new();
        self.stream.publish(Record { seq, time: 0, event }, &mut wake);
        assert!(wake.is_empty());
        for reader in self.readers.iter_mut().filter(|reader| reader.filter.matches(&event)) {
            reader.own.push(seq);
        }
    }

    fn open(&mut self, kind: usize, vcpu: Option<u32>, opened: u64) {
        let kinds = [EventKind::Cr3, EventKind::Msr];
        let filter = Filter { kind: kinds.get(kind).copied(), vcpu: vcpu.map(VcpuId), ..Filter::default() };
        let of: Vec<_> = kinds.into_iter().filter(|is| filter.kind.is_none_or(|kind| kind == *is)).collect();
        let cursor = self.stream.open(&of);
        let parked = Parked::new(filter.clone());
        let (own, got, lost) = Default::default();
        self.readers.push(Reader { filter, cursor, parked, own, got, lost, opened });
    }

    fn close(&mut self, at: usize) {
        let mut reader = self.readers.swap_remove(at);
        while !reader.read(&self.stream, &self.stats, 3) {}
        reader.check();
        let mut wake = Vec::new();
        self.stream.close(&mut reader.cursor, &reader.parked, &mut wake);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn every_record_is_read_or_told_as_lost(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World { stream: Stream::of(RECORDS), stats: Stats::default(), readers: Vec::new() };
        let mut seq = 0;
        for step in steps {
            match step {
                Step::Publish(events) => for (often, vcpu) in events {
                    seq += 1;
                    world.publish(if often { cr3(vcpu, seq) } else { msr(vcpu, 1) });
                },
                Step::Open(kind, vcpu) => world.open(kind, vcpu, seq),
                Step::Read(at, most) if !world.readers.is_empty() => {
                    let at = at % world.readers.len();
                    world.readers[at].read(&world.stream, &world.stats, most);
                }
                Step::Close(at) if !world.readers.is_empty() => world.close(at % world.readers.len()),
                Step::Read(..) | Step::Close(_) => {}
            }
        }
        while !world.readers.is_empty() {
            world.close(0);
        }
    }
}

#[test]
fn a_reader_that_is_overtaken_is_told_once_and_it_is_counted() {
    let mount = mount();
    let file = mount.open(EventKind::Cr3, Mode::Observe);
    let ring = super::super::ring::RECORDS as u64;
    mount.mock.tell((0..ring + 100).map(|new| cr3(0, new)));
    until("all", || mount.stat(EventKind::Cr3, "raised") == ring + 100);
    assert_eq!(items(&file, 1), [Item::Lost { first: 1, last: 100 }]);
    assert_eq!(mount.stat(EventKind::Cr3, "lost"), 100);
    assert_eq!(next(&file), (101, false));
    assert_eq!(items(&file, ring as usize - 1).len() as u64, ring - 1);
    assert!(!file.readable(None));
    assert_eq!(mount.stat(EventKind::Cr3, "lost"), 100);
}
