//! A PV guest's frames, mapped as those of any other: by its own table of them.

use std::io::{Error, Result};
use std::sync::Arc;

use super::p2m::{Entry, FRAMES, Reader, frame};
use super::root::Root;
use crate::error::number::{EBUSY, EINVAL};
use crate::hypervisor::{Frames, Mapped};

/// A frame that no machine has, and that Xen refuses without a word in its log.
const NOWHERE: u64 = FRAMES - 1;

/// The frames of a paravirtual guest.
pub struct PvFrames {
    machine: Arc<dyn Frames>,
    shared_info: u64,
}

impl PvFrames {
    /// Over the machine's frames, by the page that the guest shares with Xen.
    #[must_use]
    pub fn new(machine: Arc<dyn Frames>, shared_info: u64) -> Self {
        Self { machine, shared_info }
    }

    /// The shared page, which is not kept: a domain does not die while somebody has a page of it.
    fn shared(&self) -> Result<Box<dyn Mapped>> {
        let (shared, there) = self.machine.map(&[self.shared_info])?;
        if there.first() == Some(&true) { Ok(shared) } else { Err(Error::from_raw_os_error(EINVAL)) }
    }

    /// Where the guest's table begins.
    fn root(&self, shared: &dyn Mapped) -> Result<Root> {
        Root::read(shared).ok_or_else(|| Error::from_raw_os_error(EBUSY))
    }

    /// Of each entry the machine's frame, if it is memory of this domain: a device's registers are not, which a guest that was
    /// given the device may name as well.
    fn memory(&self, entries: &[Entry]) -> Result<Vec<u64>> {
        let mut frames: Vec<u64> =
            entries.iter().map(|entry| frame(entry.value).unwrap_or(NOWHERE)).collect();
        let mut there = vec![false; frames.len()];
        self.machine.present(&frames, &mut there)?;
        for (frame, there) in frames.iter_mut().zip(there) {
            if !there {
                *frame = NOWHERE;
            }
        }
        Ok(frames)
    }
}

impl PvFrames {
    fn map_by(
        &self,
        frames: &[u64],
        map: impl FnOnce(&[u64]) -> Result<(Box<dyn Mapped>, Vec<bool>)>,
    ) -> Result<(Box<dyn Mapped>, Vec<bool>)> {
        let shared = self.shared()?;
        let root = self.root(&*shared)?;
        let entries = entries(&*self.machine, root, frames)?;
        let found = self.memory(&entries)?;
        let (mapped, mut there) = map(&found)?;
        for (there, frame) in there.iter_mut().zip(&found) {
            *there &= *frame != NOWHERE;
        }
        Ok((Box::new(PvMapped { mapped, shared, root, entries }), there))
    }
}

fn entries(machine: &dyn Frames, root: Root, frames: &[u64]) -> Result<Vec<Entry>> {
    let mut reader = Reader::new(machine, root);
    frames.iter().map(|frame| reader.entry(*frame)).collect()
}

impl Frames for PvFrames {
    fn map(&self, frames: &[u64]) -> Result<(Box<dyn Mapped>, Vec<bool>)> {
        self.map_by(frames, |found| self.machine.map(found))
    }

    fn map_to_write(&self, frames: &[u64]) -> Result<(Box<dyn Mapped>, Vec<bool>)> {
        self.map_by(frames, |found| self.machine.map_to_write(found))
    }

    fn present(&self, frames: &[u64], there: &mut [bool]) -> Result<()> {
        let shared = self.shared()?;
        let root = self.root(&*shared)?;
        let found = self.memory(&entries(&*self.machine, root, frames)?)?;
        for (there, frame) in there.iter_mut().zip(found) {
            *there = frame != NOWHERE;
        }
        Ok(())
    }

    fn alive(&self) -> bool {
        self.machine.alive()
    }

    fn told(&self) -> Result<Option<u64>> {
        let shared = self.shared()?;
        self.root(&*shared).map(|root| Some(root.frames))
    }
}

/// Frames of the guest, and the entries that they were found by.
struct PvMapped {
    mapped: Box<dyn Mapped>,
    shared: Box<dyn Mapped>,
    root: Root,
    entries: Vec<Entry>,
}

impl Mapped for PvMapped {
    fn read(&self, page: usize, offset: usize, buf: &mut [u8]) {
        self.mapped.read(page, offset, buf);
    }

    fn write(&self, page: usize, offset: usize, data: &[u8]) {
        self.mapped.write(page, offset, data);
    }

    fn moved(&self, page: usize) -> bool {
        Root::read(&*self.shared) != Some(self.root)
            || self.entries.get(page).is_none_or(|entry| entry.now() != entry.value)
    }

    fn machine(&self, page: usize) -> Option<u64> {
        self.entries.get(page).and_then(|entry| frame(entry.value))
    }
}
