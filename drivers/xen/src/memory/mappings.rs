//! Live mappings of the domain's memory, kept for the next access: the least recently used go first, by a budget of bytes.

use std::io::{Error, Result};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

use crate::error::number::EINVAL;
use crate::hypervisor::{Frames, Mapped};

const PAGE: u64 = vmtree_api::PAGE_SIZE;
/// Frames that are mapped together: 1 MiB, the most that one request of FUSE asks for.
pub const CHUNK: u64 = 256;
/// How long a mapping is used. The guest may have Xen put other memory at a frame, of which nobody is told; what is then
/// still mapped is the old one. Of a PV guest each access sees it ([`Mapped::moved`]).
const AGE: Duration = Duration::from_secs(1);

/// Frames that are mapped side by side.
struct Chunk {
    mapped: Box<dyn Mapped>,
    there: Vec<bool>,
    since: Instant,
}

/// What was done, for `info` and tests.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Calls that mapped.
    pub mapped: u64,
    /// Accesses that found their mapping.
    pub found: u64,
}

struct Kept {
    chunks: LruCache<u64, Arc<Chunk>>,
    counts: Counts,
    /// Grows when all is dropped: what was mapped before is not kept then.
    generation: u64,
}

/// The mappings.
pub struct Mappings {
    frames: Arc<dyn Frames>,
    kept: Mutex<Kept>,
}

impl Mappings {
    /// None yet; at most `budget` bytes are kept mapped.
    #[must_use]
    pub fn new(frames: Arc<dyn Frames>, budget: u64) -> Self {
        let most = NonZeroUsize::new((budget / (CHUNK * PAGE)) as usize).unwrap_or(NonZeroUsize::MIN);
        let kept = Kept { chunks: LruCache::new(most), counts: Counts::default(), generation: 0 };
        Self { frames, kept: Mutex::new(kept) }
    }

    /// Drops all: memory may lie elsewhere now.
    pub fn drop_all(&self) {
        let mut kept = self.kept.lock();
        kept.generation += 1;
        // Unmapped without the lock.
        let old = std::mem::replace(&mut kept.chunks, LruCache::new(NonZeroUsize::MIN));
        kept.chunks = LruCache::new(old.cap());
        drop(kept);
    }

    /// What was done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.kept.lock().counts
    }

    fn chunk(&self, number: u64) -> Result<Arc<Chunk>> {
        let generation = {
            let mut kept = self.kept.lock();
            let found = kept.chunks.get(&number).filter(|chunk| chunk.since.elapsed() < AGE).cloned();
            if let Some(chunk) = found {
                kept.counts.found += 1;
                return Ok(chunk);
            }
            kept.counts.mapped += 1;
            kept.generation
        };
        let frames: Vec<u64> = (number * CHUNK..(number + 1) * CHUNK).collect();
        let since = Instant::now();
        let (mapped, there) = self.frames.map(&frames)?;
        let chunk = Arc::new(Chunk { mapped, there, since });
        let mut kept = self.kept.lock();
        let old =
            if kept.generation == generation { kept.chunks.push(number, Arc::clone(&chunk)) } else { None };
        drop(kept);
        drop(old);
        Ok(chunk)
    }

    /// The chunk of this number, `held` if that is it, mapped anew if the guest has put other memory at this page of it.
    fn fresh(&self, number: u64, page: usize, held: Option<(u64, Arc<Chunk>)>) -> Result<Arc<Chunk>> {
        let chunk = match held {
            Some((is, chunk)) if is == number => chunk,
            _ => self.chunk(number)?,
        };
        if !chunk.mapped.moved(page) {
            return Ok(chunk);
        }
        self.kept.lock().chunks.pop(&number);
        self.chunk(number)
    }

    /// The machine's frame at a frame of a PV guest, if memory is there.
    ///
    /// # Errors
    /// Xen maps nothing there.
    pub fn machine(&self, frame: u64) -> Result<Option<u64>> {
        let (number, page) = (frame / CHUNK, (frame % CHUNK) as usize);
        let chunk = self.fresh(number, page, None)?;
        Ok(chunk.mapped.machine(page).filter(|_| chunk.there.get(page) == Some(&true)))
    }

    /// Calls `each` with a mapping, a page of it, an offset in that page and a range of the whole, page after page of
    /// `bytes` from `gpa` on; returns how many bytes were there.
    fn pages(
        &self,
        gpa: u64,
        bytes: usize,
        mut each: impl FnMut(&dyn Mapped, (usize, usize), std::ops::Range<usize>),
    ) -> Result<usize> {
        let mut done = 0;
        let mut held: Option<(u64, Arc<Chunk>)> = None;
        while done < bytes {
            let at = gpa + done as u64;
            let (number, page) = (at / PAGE / CHUNK, (at / PAGE % CHUNK) as usize);
            let chunk = match self.fresh(number, page, held.take()) {
                Ok(chunk) => chunk,
                Err(error) if done == 0 => return Err(error),
                Err(_) => return Ok(done),
            };
            if chunk.there.get(page) != Some(&true) {
                return if done == 0 { Err(Error::from_raw_os_error(EINVAL)) } else { Ok(done) };
            }
            let offset = (at % PAGE) as usize;
            let length = (PAGE as usize - offset).min(bytes - done);
            each(&*chunk.mapped, (page, offset), done..done + length);
            done += length;
            held = Some((number, chunk));
        }
        Ok(done)
    }

    /// Copies memory into `buf` and returns how much of it is there.
    ///
    /// # Errors
    /// Not even the first byte is.
    pub fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<usize> {
        self.pages(gpa, buf.len(), |mapped, (page, offset), range| {
            if let Some(part) = buf.get_mut(range) {
                mapped.read(page, offset, part);
            }
        })
    }

    /// Copies `data` into memory by a mapping of its own, for what is kept can't be written, and returns how much of it was
    /// taken.
    ///
    /// # Errors
    /// Not even the first byte was.
    pub fn write_once(&self, gpa: u64, data: &[u8]) -> Result<usize> {
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let (first, offset) = ((gpa + done as u64) / PAGE, ((gpa + done as u64) % PAGE) as usize);
            let part = rest.get(..CHUNK as usize * PAGE as usize - offset).unwrap_or(rest);
            let pages = (offset + part.len()).div_ceil(PAGE as usize) as u64;
            let (mapped, there) = self.frames.map_to_write(&(first..first + pages).collect::<Vec<_>>())?;
            let whole = there.iter().take_while(|there| **there).count();
            let bytes = (whole * PAGE as usize).saturating_sub(offset).min(part.len());
            let mut written = 0;
            while let Some(rest) = part.get(written..bytes).filter(|rest| !rest.is_empty()) {
                let at = offset + written;
                let bytes = rest.len().min(PAGE as usize - at % PAGE as usize);
                mapped.write(at / PAGE as usize, at % PAGE as usize, rest.get(..bytes).unwrap_or(rest));
                written += bytes;
            }
            done += written;
            if written < part.len() {
                break;
            }
        }
        if done == 0 && !data.is_empty() { Err(Error::from_raw_os_error(EINVAL)) } else { Ok(done) }
    }

    /// Drops what is too old to be used, for Xen keeps the pages of whom they were as long as somebody has them mapped.
    pub fn drop_old(&self) {
        let mut kept = self.kept.lock();
        let old: Vec<u64> = kept
            .chunks
            .iter()
            .filter(|(_, chunk)| chunk.since.elapsed() >= AGE)
            .map(|(number, _)| *number)
            .collect();
        let old: Vec<_> = old.into_iter().filter_map(|number| kept.chunks.pop(&number)).collect();
        // Unmapped without the lock.
        drop(kept);
        drop(old);
    }

    /// Copies `data` into memory and returns how much of it was taken.
    ///
    /// # Errors
    /// Not even the first byte was.
    pub fn write(&self, gpa: u64, data: &[u8]) -> Result<usize> {
        self.pages(gpa, data.len(), |mapped, (page, offset), range| {
            if let Some(part) = data.get(range) {
                mapped.write(page, offset, part);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Ram;
    use proptest::prelude::*;

    fn mappings(budget: u64) -> (Arc<Ram>, Mappings) {
        let ram = Arc::new(Ram::new(&[0..600, 700..900]));
        (Arc::clone(&ram), Mappings::new(ram, budget))
    }

    #[test]
    fn a_page_read_twice_costs_one_mapping() {
        let (ram, mappings) = mappings(64 << 20);
        let mut buf = [0; 8];
        for _ in 0..5 {
            mappings.read(0x5000, &mut buf).unwrap();
        }
        assert_eq!((mappings.counts(), ram.mapped()), (Counts { mapped: 1, found: 4 }, 1));
        mappings.drop_all();
        mappings.read(0x5000, &mut buf).unwrap();
        assert_eq!(ram.mapped(), 2);
    }

    #[test]
    fn the_budget_holds_and_the_oldest_go_first() {
        let (ram, mappings) = mappings(2 << 20);
        for gpa in [0, 1 << 20, 0, 2 << 20, 0] {
            mappings.read(gpa, &mut [0]).unwrap();
        }
        assert_eq!((ram.mapped(), ram.alive()), (3, 2));
        drop(mappings);
        assert_eq!(ram.alive(), 0);
    }

    #[test]
    fn what_is_too_old_to_be_used_is_dropped() {
        let (ram, mappings) = mappings(8 << 20);
        mappings.read(0x5000, &mut [0]).unwrap();
        mappings.drop_old();
        assert_eq!(ram.alive(), 1);
        std::thread::sleep(AGE);
        mappings.drop_old();
        assert_eq!(ram.alive(), 0);
    }

    #[test]
    fn a_dropped_mapping_is_not_the_old_memory() {
        let (ram, mappings) = mappings(8 << 20);
        mappings.write(0x3000, b"old").unwrap();
        ram.replace(3);
        mappings.drop_all();
        let mut buf = [7; 3];
        mappings.read(0x3000, &mut buf).unwrap();
        assert_eq!(buf, [0; 3]);
    }

    #[test]
    fn what_is_not_there_is_refused_or_cut() {
        let (_ram, mappings) = mappings(8 << 20);
        let end = 600 * PAGE;
        assert!(mappings.read(end, &mut [0]).is_err());
        assert_eq!(mappings.read(end - 3, &mut [0; 10]).unwrap(), 3);
        assert_eq!(mappings.write(end - 3, &[1; 10]).unwrap(), 3);
        assert_eq!(mappings.read(0, &mut []).unwrap(), 0);
    }

    proptest! {
        #[test]
        fn what_is_written_once_is_read(gpa in 0_u64..600 * PAGE, length in 0_usize..3 << 20, value in 1_u8..) {
            let (ram, mappings) = mappings(1 << 20);
            let there = length.min((600 * PAGE - gpa) as usize);
            prop_assert_eq!(mappings.write_once(gpa, &vec![value; length]).unwrap(), there);
            prop_assert_eq!(ram.alive(), 0);
            let mut back = vec![0; there];
            prop_assert_eq!(mappings.read(gpa, &mut back).unwrap(), there);
            prop_assert!(back.iter().all(|byte| *byte == value));
            let mut beside = [9];
            if gpa > 0 {
                mappings.read(gpa - 1, &mut beside).unwrap();
                prop_assert_eq!(beside, [0]);
            }
            prop_assert!(mappings.write_once(600 * PAGE, &[1]).is_err());
        }

        #[test]
        fn what_is_written_is_read(gpa in 0_u64..600 * PAGE - 10000, data in proptest::collection::vec(any::<u8>(), 1..9000)) {
            let (_ram, mappings) = mappings(1 << 20);
            prop_assert_eq!(mappings.write(gpa, &data).unwrap(), data.len());
            let mut back = vec![0; data.len()];
            prop_assert_eq!(mappings.read(gpa, &mut back).unwrap(), data.len());
            prop_assert_eq!(&back, &data);
        }
    }
}
