//! Physical memory: file offset = guest-physical address.

use std::sync::Arc;

use vmtree_api::{Driver, Gpa, MachineMemory, MemoryMap, PAGE_SIZE, Span};

use super::PageCache;
use crate::error::{FsError, FsResult};

pub use crate::text::options::Holes;

/// The VM's physical memory as one range of bytes, holes included.
pub struct GuestMemory {
    driver: Arc<dyn Driver>,
    cache: PageCache,
    holes: Holes,
}

/// A part of a range that lies in one region, or in one hole.
struct Piece {
    bytes: usize,
    data: bool,
}

impl GuestMemory {
    /// The memory of `driver`, with what its copies go through.
    #[must_use]
    pub fn new(driver: Arc<dyn Driver>, cache: PageCache, holes: Holes) -> Self {
        Self { driver, cache, holes }
    }

    /// The cache of its copies.
    #[must_use]
    pub fn cache(&self) -> &PageCache {
        &self.cache
    }

    /// The map now.
    #[must_use]
    pub fn map(&self) -> Arc<MemoryMap> {
        self.driver.memory().map()
    }

    /// The way back from the machine's addresses, for a paravirtual guest.
    #[must_use]
    pub fn machine(&self) -> Option<&dyn MachineMemory> {
        self.driver.memory().machine()
    }

    /// Hands the bytes from `offset` on to `take`, once: `len` of them, or fewer at the end of RAM, at a hole under
    /// `holes=eio`, or where the rest can't be read. Nothing at or past the end.
    ///
    /// # Errors
    /// Not even the first byte could be read; `take` was not called then.
    pub fn read(&self, offset: u64, len: usize, take: &mut dyn FnMut(&[u8])) -> FsResult<()> {
        let map = self.map();
        let len = clip(offset, len, map.ram_end());
        if len == 0 {
            take(&[]);
            return Ok(());
        }
        let first = piece(&map, offset, len);
        if first.data && first.bytes == len && self.driver.memory().lend(Gpa(offset), len, take)? {
            return Ok(());
        }
        self.read_by(&map, offset, len, &mut |at, part| self.copy(at, part), take)
    }

    /// As [`GuestMemory::read`] of a range below the end of RAM, each piece of it that holds data copied by `copy`.
    pub(super) fn read_by(
        &self,
        map: &MemoryMap,
        offset: u64,
        len: usize,
        copy: &mut dyn FnMut(u64, &mut [u8]) -> FsResult<usize>,
        take: &mut dyn FnMut(&[u8]),
    ) -> FsResult<()> {
        let mut buf = vec![0; len];
        let done = self.fill(map, offset, &mut buf, copy)?;
        take(buf.get(..done).unwrap_or_default());
        Ok(())
    }

    /// Fills `buf`, which is zeroed, from `offset` on and returns how far it came.
    fn fill(
        &self,
        map: &MemoryMap,
        offset: u64,
        buf: &mut [u8],
        copy: &mut dyn FnMut(u64, &mut [u8]) -> FsResult<usize>,
    ) -> FsResult<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset + done as u64;
            let piece = piece(map, at, rest.len());
            let Some(part) = rest.get_mut(..piece.bytes) else { break };
            let got = match (piece.data, self.holes) {
                (true, _) => copy(at, part),
                (false, Holes::Zero) => Ok(piece.bytes),
                (false, Holes::Error) => Err(hole(at)),
            };
            match got {
                Ok(bytes) => done += bytes,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
            if done < (at - offset) as usize + piece.bytes {
                break;
            }
        }
        Ok(done)
    }

    /// Copies one piece of a data region, through the cache where copies may be used.
    fn copy(&self, at: u64, buf: &mut [u8]) -> FsResult<usize> {
        if !self.cache.active() {
            return Ok(self.driver.memory().read(Gpa(at), buf)?);
        }
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let now = at + done as u64;
            let in_page = rest.len().min((PAGE_SIZE - now % PAGE_SIZE) as usize);
            let Some(part) = rest.get_mut(..in_page) else { break };
            if !self.cache.get(Gpa(now).gfn(), (now % PAGE_SIZE) as usize, part) {
                match self.copy_and_keep(now, rest) {
                    Ok(0) => break,
                    Ok(bytes) => done += bytes,
                    Err(error) if done == 0 => return Err(error),
                    Err(_) => break,
                }
                continue;
            }
            done += in_page;
        }
        Ok(done)
    }

    /// Reads the pages of `buf` (all of them at once: one call costs less than many) and keeps the whole ones.
    fn copy_and_keep(&self, at: u64, buf: &mut [u8]) -> FsResult<usize> {
        let memory = self.driver.memory();
        let base = Gpa(at).page_base();
        let skip = (at - base.0) as usize;
        let whole_page = (skip + buf.len()).next_multiple_of(PAGE_SIZE as usize);
        let mut pages = vec![0; whole_page];
        let stamp = self.cache.stamp();
        let got = match piece(&memory.map(), base.0, whole_page) {
            Piece { bytes, data: true } if bytes == whole_page => memory.read(base, &mut pages)?,
            // The region does not cover whole pages: nothing to keep.
            _ => return Ok(memory.read(Gpa(at), buf)?),
        };
        for (page, bytes) in (base.gfn().0..).zip(pages.get(..got).unwrap_or_default().chunks_exact(4096)) {
            self.cache.put(vmtree_api::Gfn(page), bytes, stamp);
        }
        let wanted = pages.get(skip..got).unwrap_or_default();
        let bytes = wanted.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..bytes), wanted.get(..bytes)) {
            to.copy_from_slice(from);
        }
        if bytes == 0 { Ok(memory.read(Gpa(at), buf)?) } else { Ok(bytes) }
    }

    /// Writes `data` from `offset` on and returns how many bytes were written: fewer where a hole begins.
    ///
    /// # Errors
    /// Nothing was written.
    pub fn write(&self, offset: u64, data: &[u8]) -> FsResult<usize> {
        self.write_by(offset, data, &mut |at, part| {
            let written = self.driver.memory().write(Gpa(at), part);
            self.cache.forget(at, part.len() as u64);
            Ok(written?)
        })
    }

    /// As [`GuestMemory::write`], each piece of it that holds data stored by `store`.
    pub(super) fn write_by(
        &self,
        offset: u64,
        data: &[u8],
        store: &mut dyn FnMut(u64, &[u8]) -> FsResult<usize>,
    ) -> FsResult<usize> {
        let map = self.map();
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let Some(at) = offset.checked_add(done as u64) else { break };
            let piece = piece(&map, at, rest.len());
            if !piece.data {
                break;
            }
            let part = rest.get(..piece.bytes).unwrap_or(rest);
            match store(at, part) {
                Ok(bytes) => done += bytes,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
            if done < (at - offset) as usize + part.len() {
                break;
            }
        }
        if done == 0 && !data.is_empty() {
            return Err(hole(offset));
        }
        Ok(done)
    }

    /// The first offset from `offset` on that holds data (or, with `data` false, that holds none).
    ///
    /// # Errors
    /// [`FsError::PastTheEnd`] at or past the end, or where no data follows.
    pub fn seek(&self, offset: u64, data: bool) -> FsResult<u64> {
        let map = self.map();
        let end = map.ram_end();
        let mut at = offset;
        while at < end {
            let next = match map.at(Gpa(at)) {
                Span::Region(region) if region.holds_data() == data => return Ok(at),
                Span::Region(region) => region.end.0,
                Span::Hole(_) if !data => return Ok(at),
                Span::Hole(next) => next.map_or(end, |next| next.0),
            };
            at = next;
        }
        // The end of a file counts as a hole (lseek(2)).
        if !data && offset < end { Ok(end) } else { Err(FsError::PastTheEnd) }
    }
}

fn hole(offset: u64) -> FsError {
    FsError::NoMemory(format!("there is no memory at {offset:#x}; mem.map shows where there is"))
}

pub(super) fn clip(offset: u64, len: usize, end: u64) -> usize {
    usize::try_from(end.saturating_sub(offset)).map_or(len, |rest| rest.min(len))
}

/// The part of a range, from its start, that lies in one region that holds data, or outside all of them.
fn piece(map: &MemoryMap, offset: u64, len: usize) -> Piece {
    let (end, data) = match map.at(Gpa(offset)) {
        Span::Region(region) => (Some(region.end.0), region.holds_data()),
        Span::Hole(next) => (next.map(|next| next.0), false),
    };
    let bytes = end.map_or(len, |end| clip(offset, len, end));
    Piece { bytes, data }
}

#[cfg(test)]
#[path = "phys_tests.rs"]
mod tests;
