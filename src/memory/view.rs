//! Physical memory as a SLAT view shows it.

use vmtree_api::views::Views;
use vmtree_api::{Gpa, ViewId};

use super::phys::clip;
use super::{GuestMemory, each_page};
use crate::error::FsResult;

/// One view's memory: regions and holes are the guest's own, the frames what the view shows there.
pub struct ViewMemory<'a> {
    memory: &'a GuestMemory,
    views: &'a dyn Views,
    id: ViewId,
}

impl<'a> ViewMemory<'a> {
    /// The memory that the view `id` shows.
    #[must_use]
    pub fn new(memory: &'a GuestMemory, views: &'a dyn Views, id: ViewId) -> Self {
        Self { memory, views, id }
    }

    /// As [`GuestMemory::read`].
    ///
    /// # Errors
    /// Not even the first byte could be read; `take` was not called then.
    pub fn read(&self, offset: u64, len: usize, take: &mut dyn FnMut(&[u8])) -> FsResult<()> {
        let map = self.memory.map();
        let len = clip(offset, len, map.ram_end());
        if len == 0 {
            take(&[]);
            return Ok(());
        }
        let mut copy = |at: u64, part: &mut [u8]| {
            each_page(at, part.len(), |at, range| {
                let Some(part) = part.get_mut(range) else { return Ok(0) };
                Ok(self.views.read(self.id, Gpa(at), part)?)
            })
        };
        self.memory.read_by(&map, offset, len, &mut copy, take)
    }

    /// As [`GuestMemory::write`].
    ///
    /// # Errors
    /// Nothing was written.
    pub fn write(&self, offset: u64, data: &[u8]) -> FsResult<usize> {
        let written = self.memory.write_by(offset, data, &mut |at, part| {
            each_page(at, part.len(), |at, range| {
                Ok(self.views.write(self.id, Gpa(at), part.get(range).unwrap_or_default())?)
            })
        });
        // The frame that the view shows may be any of the guest's.
        self.memory.cache().flush();
        written
    }
}
