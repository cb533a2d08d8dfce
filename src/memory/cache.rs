//! The LRU page cache, for drivers that copy memory instead of mapping it.
//!
//! A copy is used only while it can't be stale: while this mount's own pause holds, or for the `cache_ms` that the
//! user allowed. The lock is never held across a driver call.

use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;
use vmtree_api::{Gfn, PAGE_SIZE};

/// What the cache has done, for the file `cache`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Pages held now.
    pub pages: u64,
    /// Lookups answered from a copy.
    pub hits: u64,
    /// Lookups that found nothing usable.
    pub misses: u64,
    /// Copies found but no longer fresh, so dropped.
    pub stale: u64,
    /// Copies dropped to make room.
    pub evictions: u64,
}

struct Copy {
    bytes: Box<[u8]>,
    taken: Instant,
    epoch: u64,
}

struct State {
    pages: LruCache<Gfn, Copy>,
    counts: Counts,
    /// Grows whenever every copy made before may have become stale.
    epoch: u64,
    /// Grows with every write, so that a read that overlaps one is not kept.
    reads_void: u64,
    paused: bool,
    /// How many steps are under way: the guest changes memory, paused or not.
    steps: u32,
}

impl State {
    /// Whether nothing runs in the guest, so that copies of this epoch are the guest's memory.
    fn still(&self) -> bool {
        self.paused && self.steps == 0
    }
}

/// A step under way: copies from before and during it are stale.
pub struct Step<'a>(&'a PageCache);

impl Drop for Step<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.steps -= 1;
        state.epoch += 1;
    }
}

/// The cache of one mount.
pub struct PageCache {
    state: Mutex<State>,
    /// The most pages it holds. `LruCache::new` would reserve room for all of them at once.
    limit: usize,
    lifetime: Duration,
}

/// The moment a copy was begun, to be handed back with it.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    taken: Instant,
    epoch: u64,
    reads_void: u64,
}

impl PageCache {
    /// A cache of at most `bytes`, whose copies live `lifetime` while the VM runs.
    #[must_use]
    pub fn new(bytes: u64, lifetime: Duration) -> Self {
        let limit = usize::try_from(bytes / PAGE_SIZE).unwrap_or(usize::MAX);
        let state = State {
            pages: LruCache::unbounded(),
            counts: Counts::default(),
            epoch: 0,
            reads_void: 0,
            paused: false,
            steps: 0,
        };
        Self { state: Mutex::new(state), limit, lifetime }
    }

    /// Whether a copy may be used at all now.
    #[must_use]
    pub fn active(&self) -> bool {
        !self.lifetime.is_zero() || self.state.lock().still()
    }

    /// Tells the cache whether this mount's own pause holds. Copies from before don't outlive a change.
    pub fn set_paused(&self, paused: bool) {
        let mut state = self.state.lock();
        state.paused = paused;
        state.epoch += 1;
    }

    /// To be held while a paused guest executes some instructions.
    #[must_use]
    pub fn step(&self) -> Step<'_> {
        let mut state = self.state.lock();
        state.steps += 1;
        state.epoch += 1;
        Step(self)
    }

    /// Drops every copy.
    pub fn flush(&self) {
        let mut state = self.state.lock();
        state.pages.clear();
        state.epoch += 1;
    }

    /// Copies bytes of a frame from `offset` on into `buf`, if a fresh copy is there.
    pub fn get(&self, gfn: Gfn, offset: usize, buf: &mut [u8]) -> bool {
        let mut state = self.state.lock();
        let (still, epoch) = (state.still(), state.epoch);
        let fresh = match state.pages.get(&gfn) {
            None => None,
            Some(copy) => {
                let fresh = (still && copy.epoch == epoch) || copy.taken.elapsed() < self.lifetime;
                let bytes = copy.bytes.get(offset..offset + buf.len());
                Some(fresh && bytes.map(|bytes| buf.copy_from_slice(bytes)).is_some())
            }
        };
        match fresh {
            Some(true) => state.counts.hits += 1,
            Some(false) => {
                state.counts.stale += 1;
                state.counts.misses += 1;
                state.pages.pop(&gfn);
            }
            None => state.counts.misses += 1,
        }
        fresh == Some(true)
    }

    /// To be called before the driver is asked for bytes that are to be kept.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        let state = self.state.lock();
        Stamp { taken: Instant::now(), epoch: state.epoch, reads_void: state.reads_void }
    }

    /// Keeps a whole frame that was read after `stamp`.
    pub fn put(&self, gfn: Gfn, bytes: &[u8], stamp: Stamp) {
        let mut state = self.state.lock();
        // A write, a flush or a resume came between: what was read may be old already.
        if (state.epoch, state.reads_void) != (stamp.epoch, stamp.reads_void) {
            return;
        }
        let copy = Copy { bytes: bytes.into(), taken: stamp.taken, epoch: stamp.epoch };
        state.pages.put(gfn, copy);
        if state.pages.len() > self.limit {
            state.pages.pop_lru();
            state.counts.evictions += 1;
        }
    }

    /// Drops the copies of the frames that hold `bytes` bytes from `start` on, after they were written. A read that
    /// is under way meanwhile keeps nothing.
    pub fn forget(&self, start: u64, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut state = self.state.lock();
        state.reads_void = state.reads_void.wrapping_add(1);
        for gfn in start / PAGE_SIZE..=(start + (bytes - 1)) / PAGE_SIZE {
            state.pages.pop(&Gfn(gfn));
        }
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let state = self.state.lock();
        Counts { pages: state.pages.len() as u64, ..state.counts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: [u8; PAGE_SIZE as usize] = [7; PAGE_SIZE as usize];

    fn put(cache: &PageCache, gfn: u64) {
        let stamp = cache.stamp();
        cache.put(Gfn(gfn), &PAGE, stamp);
    }

    fn has(cache: &PageCache, gfn: u64) -> bool {
        cache.get(Gfn(gfn), 10, &mut [0; 4])
    }

    #[test]
    fn copies_serve_only_while_our_pause_holds() {
        let cache = PageCache::new(1 << 20, Duration::ZERO);
        assert!(!cache.active());
        cache.set_paused(true);
        put(&cache, 1);
        assert!(cache.active() && has(&cache, 1));
        cache.set_paused(false);
        assert!(!has(&cache, 1));
        cache.set_paused(true);
        assert!(!has(&cache, 1), "a copy from an earlier pause is stale");
        assert_eq!(cache.counts().stale, 1);
    }

    #[test]
    fn copies_from_before_and_during_a_step_are_stale() {
        let cache = PageCache::new(1 << 20, Duration::ZERO);
        cache.set_paused(true);
        put(&cache, 1);
        let (one, other) = (cache.step(), cache.step());
        assert!(!cache.active() && !has(&cache, 1));
        drop(one);
        put(&cache, 2);
        assert!(!has(&cache, 2), "another vCPU still steps");
        let during = cache.stamp();
        drop(other);
        cache.put(Gfn(3), &PAGE, during);
        assert!(!has(&cache, 1) && !has(&cache, 2) && !has(&cache, 3));
        put(&cache, 1);
        assert!(cache.active() && has(&cache, 1));
    }

    #[test]
    fn what_was_written_or_flushed_is_not_kept() {
        let cache = PageCache::new(1 << 20, Duration::from_secs(60));
        let before = cache.stamp();
        cache.forget(PAGE_SIZE - 1, 2);
        cache.put(Gfn(0), &PAGE, before);
        assert!(!has(&cache, 0), "a read that a write overtook");
        put(&cache, 0);
        put(&cache, 1);
        cache.forget(PAGE_SIZE - 1, 2);
        assert!(!has(&cache, 0) && !has(&cache, 1));
        put(&cache, 0);
        cache.flush();
        assert!(!has(&cache, 0));
    }

    #[test]
    fn holds_no_more_than_its_limit() {
        let cache = PageCache::new(2 * PAGE_SIZE, Duration::from_secs(60));
        for gfn in 0..3 {
            put(&cache, gfn);
        }
        assert!(!has(&cache, 0) && has(&cache, 1) && has(&cache, 2));
        assert_eq!((cache.counts().pages, cache.counts().evictions), (2, 1));
    }
}
