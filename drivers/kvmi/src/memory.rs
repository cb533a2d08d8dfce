//! Physical memory: a page a call. KVMI has no map of it, so where memory is, is found by looking.

use std::sync::Arc;

use vmtree_api::{Block, Error, ErrorKind, Gpa, Memory, MemoryMap, PAGE_SIZE, Region, RegionKind, Result};

use crate::failure;
use crate::owner::Handle;
use crate::port::{Answer, Guest, Refusal, errno};

const READ: &str = "read memory";
const WRITE: &str = "write memory";

/// The first frames are all looked at: a PC has holes of some hundred KiB there.
const FINE: u64 = 512;
/// Further on, holes and memory come in multiples of 2 MiB.
const COARSE: u64 = 512;
/// More frames than any VM of today has (64 TiB): a hypervisor that tells of more is not believed.
const MOST: u64 = 1 << 34;

/// Whether there is memory at a frame.
fn is_there(guest: &mut dyn Guest, gfn: u64) -> Answer<bool> {
    match guest.read(gfn * PAGE_SIZE, &mut [0]) {
        Ok(()) => Ok(true),
        Err(Refusal::Errno(errno::ENOENT | errno::EINVAL)) => Ok(false),
        Err(refusal) => Err(refusal),
    }
}

/// Between a frame and a later one, of which one is there and the other is not: the first that is as the later one.
fn border(guest: &mut dyn Guest, mut low: u64, mut high: u64) -> Answer<u64> {
    let later = is_there(guest, high)?;
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if is_there(guest, middle)? == later { high = middle } else { low = middle }
    }
    Ok(high)
}

/// Where memory is, as far as looks at some frames tell.
///
/// # Errors
/// The hypervisor's.
pub fn look(guest: &mut dyn Guest) -> Answer<MemoryMap> {
    // It is the last frame, or the one behind it.
    let last = guest.max_gfn()?;
    if last > MOST {
        return Err(Refusal::Gone(format!("the hypervisor tells of {last:#x} frames, which no VM has")));
    }
    let mut regions = Vec::new();
    let mut begun = is_there(guest, 0)?.then_some(0);
    let mut at = 0;
    while at < last {
        let next = if at < FINE { at + 1 } else { last.min(at + COARSE) };
        let there = is_there(guest, next)?;
        if there != begun.is_some() {
            let border = border(guest, at, next)?;
            match begun.take() {
                Some(start) => regions.push(region(start, border)),
                None => begun = Some(border),
            }
        }
        at = next;
    }
    if let Some(start) = begun {
        regions.push(region(start, last + 1));
    }
    Ok(MemoryMap::new(1, regions))
}

fn region(start: u64, end: u64) -> Region {
    Region { start: Gpa(start * PAGE_SIZE), end: Gpa(end * PAGE_SIZE), kind: RegionKind::Ram, block: None }
}

/// The VM's memory.
pub struct GuestMemory {
    handle: Handle,
    map: Arc<MemoryMap>,
}

impl GuestMemory {
    /// Of this VM.
    #[must_use]
    pub fn new(handle: Handle, map: Arc<MemoryMap>) -> Self {
        Self { handle, map }
    }
}

/// The pieces of a range that each lie in one page: offset and length.
fn pages(gpa: Gpa, bytes: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let left = bytes - done;
        let at = gpa.0.checked_add(done as u64)?;
        let part = left.min((PAGE_SIZE - at % PAGE_SIZE) as usize);
        let piece = (part > 0).then_some((done, part));
        done += part;
        piece
    })
}

/// What is done of a range, where the rest failed.
fn outcome(op: &'static str, done: usize, failed: Option<Refusal>) -> Result<usize> {
    match failed {
        Some(refusal) if done == 0 || matches!(refusal, Refusal::Gone(_)) => {
            Err(failure::error(op, &refusal))
        }
        _ => Ok(done),
    }
}

impl Memory for GuestMemory {
    fn map(&self) -> Arc<MemoryMap> {
        Arc::clone(&self.map)
    }

    fn blocks(&self) -> Vec<Block> {
        Vec::new()
    }

    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<usize> {
        let bytes = buf.len();
        if bytes == 0 {
            return Ok(0);
        }
        let copy = self.handle.call(READ, move |core| {
            let (mut copy, mut done, mut failed) = (vec![0; bytes], 0, None);
            for (at, part) in pages(gpa, bytes) {
                let Some(to) = copy.get_mut(at..at + part) else { break };
                match core.port().read(gpa.0 + at as u64, to) {
                    Ok(()) => done += part,
                    Err(refusal) => {
                        failed = Some(refusal);
                        break;
                    }
                }
            }
            copy.truncate(outcome(READ, done, failed)?);
            Ok(copy)
        })?;
        if let Some(to) = buf.get_mut(..copy.len()) {
            to.copy_from_slice(&copy);
        }
        Ok(copy.len())
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<usize> {
        if gpa.checked_add(data.len() as u64).is_none() {
            return Err(Error::new(ErrorKind::NotFound, WRITE, "there is no memory at the end of 2^64"));
        }
        let data = data.to_vec();
        self.handle.call(WRITE, move |core| {
            let (mut done, mut failed) = (0, None);
            for (at, part) in pages(gpa, data.len()) {
                let Some(from) = data.get(at..at + part) else { break };
                match core.port().write(gpa.0 + at as u64, from) {
                    Ok(()) => done += part,
                    Err(refusal) => {
                        failed = Some(refusal);
                        break;
                    }
                }
            }
            outcome(WRITE, done, failed)
        })
    }

    fn lend(&self, _gpa: Gpa, _bytes: usize, _take: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ops::Range;

    /// Memory at these frames, and nothing else.
    struct Frames(Vec<Range<u64>>, u64);

    impl Guest for Frames {
        fn vcpus(&mut self) -> Answer<u32> {
            Ok(1)
        }
        fn max_gfn(&mut self) -> Answer<u64> {
            Ok(self.1)
        }
        fn read(&mut self, gpa: u64, _buf: &mut [u8]) -> Answer<()> {
            let there = self.0.iter().any(|frames| frames.contains(&(gpa / PAGE_SIZE)));
            if there { Ok(()) } else { Err(Refusal::Errno(errno::ENOENT)) }
        }
        fn write(&mut self, _gpa: u64, _data: &[u8]) -> Answer<()> {
            Ok(())
        }
        fn access(&mut self, _view: u16, _gfns: Range<u64>, _rights: u8) -> Answer<()> {
            Ok(())
        }
        fn translate(&mut self, _vcpu: u16, gva: u64) -> Answer<u64> {
            Ok(gva)
        }
    }

    fn found(frames: &[Range<u64>], last: u64) -> Vec<Range<u64>> {
        let map = look(&mut Frames(frames.to_vec(), last)).unwrap();
        map.regions().iter().map(|region| region.start.gfn().0..region.end.gfn().0).collect()
    }

    #[test]
    fn the_map_of_a_pc_is_found() {
        let pc = [0..0xa0, 0xc0..0x30_000, 0x10_0000..0x14_0000];
        // The last frame, or the one behind it.
        assert_eq!(found(&pc, 0x13_ffff), pc);
        assert_eq!(found(&pc, 0x14_0000), pc);
        assert_eq!(found(&[0..1, 5..6], 0), found(&[0..1, 7..8], 0));
        assert_eq!(found(&[0..1, 5..6], 0).len(), 1);
        assert!(found(&[], 0).is_empty());
    }

    #[test]
    fn a_number_of_frames_that_no_vm_has_is_not_believed() {
        assert!(look(&mut Frames(Vec::new(), u64::MAX)).is_err());
    }

    proptest! {
        #[test]
        fn regions_of_2_mib_and_more_are_found_wherever_they_end(lengths in prop::collection::vec(COARSE..5000, 1..8)) {
            let mut borders = vec![0];
            for length in lengths {
                borders.push(borders[borders.len() - 1] + length);
            }
            let frames: Vec<_> = borders.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
            let last = frames.last().unwrap().end - 1;
            prop_assert_eq!(found(&frames, last), frames);
        }

        #[test]
        fn pieces_cover_a_range_and_stay_in_their_page(gpa in 0u64..20_000, bytes in 0usize..20_000) {
            let mut next = 0;
            for (at, part) in pages(Gpa(gpa), bytes) {
                prop_assert_eq!(at, next);
                prop_assert!((gpa + at as u64) % PAGE_SIZE + part as u64 <= PAGE_SIZE && part > 0);
                next += part;
            }
            prop_assert_eq!(next, bytes);
        }
    }
}
