//! The hub on a driver whose events the tests make.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod control;
mod files;
mod many;
mod mock;
mod model;
mod rules;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vmtree_api::events::EventKind;
use vmtree_api::{Cancel, ViewId};

use super::filter::{Filter, Format};
use super::record::Item;
use super::{EventFile, Hub, Mode, Taken, ViewNames, Waker};
use crate::error::{Errno, FsResult};
use crate::text::record::{RECORD_BYTES, decode};
use mock::Mock;

/// Far longer than anything here takes, and ends a test that hangs.
const LONG: Duration = Duration::from_secs(30);

struct Names;

impl ViewNames for Names {
    fn find(&self, name: &str) -> Option<ViewId> {
        name.strip_prefix('v')?.parse().ok().map(ViewId)
    }
    fn name(&self, view: ViewId) -> Option<String> {
        Some(format!("v{}", view.0))
    }
}

/// A hub that ends with its test.
struct Mount {
    mock: Arc<Mock>,
    hub: Arc<Hub>,
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.hub.end(false);
    }
}

fn mount() -> Mount {
    mount_of(Mock::new(), LONG)
}

fn mount_of(mock: Arc<Mock>, reply_timeout: Duration) -> Mount {
    let hub = Hub::new(mock.clone(), reply_timeout, || 42, Arc::new(Names));
    Mount { mock, hub }
}

impl Mount {
    fn try_open(&self, filter: Filter, mode: Mode) -> FsResult<EventFile> {
        self.hub.open(filter, Format::Binary, mode, &Cancel::default())
    }

    fn open(&self, kind: EventKind, mode: Mode) -> EventFile {
        self.try_open(Filter::of(kind), mode).unwrap()
    }

    /// The line of a kind in `events/stats`.
    fn stat(&self, kind: EventKind, word: &str) -> u64 {
        let stats = self.hub.stats();
        let line = stats.lines().find(|line| line.split(' ').next() == Some(kind.name())).unwrap();
        let value = line.split(' ').find_map(|pair| pair.strip_prefix(&format!("{word}=")[..])).unwrap();
        value.parse().unwrap()
    }
}

/// Waits until something is so.
fn until(what: &str, is: impl Fn() -> bool) {
    let late = Instant::now() + LONG;
    while !is() {
        assert!(Instant::now() < late, "{what} did not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The next `count` items of a file that shows binary records.
fn items(file: &EventFile, count: usize) -> Vec<Item> {
    let mut all = Vec::new();
    while all.len() < count {
        until("a record", || file.readable(None));
        match file.read((count - all.len()) * RECORD_BYTES) {
            Taken::Data(data) => all.extend(data.chunks(RECORD_BYTES).map(|one| decode(one).unwrap())),
            other => panic!("{other:?}"),
        }
    }
    all
}

/// The number of the next record, which must be an event, and whether it is held.
fn next(file: &EventFile) -> (u64, bool) {
    match items(file, 1)[0] {
        Item::Event { record, held } => (record.seq, held),
        lost => panic!("{lost:?}"),
    }
}

fn errno<T>(result: FsResult<T>) -> Errno {
    result.err().expect("no error").errno()
}

/// A waker that counts its calls.
fn counting(calls: &Arc<AtomicUsize>) -> Waker {
    let calls = calls.clone();
    Box::new(move || {
        calls.fetch_add(1, Ordering::SeqCst);
    })
}
