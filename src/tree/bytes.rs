//! Files that are a range of bytes: physical memory, virtual memory, MSRs.

use super::Ctx;
use super::table::Work;
use crate::error::{FsError, FsResult};

/// A range of bytes at offsets that mean something.
pub trait Bytes: Sync {
    /// Its size in bytes.
    fn size(&self, ctx: &Ctx<'_>) -> u64;

    /// How many of them hold data.
    fn allocated(&self, ctx: &Ctx<'_>) -> u64;

    /// Where requests are served.
    fn work(&self) -> Work;

    /// Hands up to `len` bytes from `offset` on to `take`, once; none at or past the end.
    ///
    /// # Errors
    /// Not even the first byte could be read.
    fn read(&self, ctx: &Ctx<'_>, offset: u64, len: usize, take: &mut dyn FnMut(&[u8])) -> FsResult<()>;

    /// Writes from `offset` on and returns how many bytes were written.
    ///
    /// # Errors
    /// Nothing was written.
    fn write(&self, ctx: &Ctx<'_>, offset: u64, data: &[u8]) -> FsResult<usize>;

    /// SEEK_DATA (`data`) or SEEK_HOLE from `offset` on. Unless it knows better, all of a file is data.
    ///
    /// # Errors
    /// [`FsError::PastTheEnd`] at or past the end.
    fn seek(&self, ctx: &Ctx<'_>, offset: u64, data: bool) -> FsResult<u64> {
        match (offset < self.size(ctx), data) {
            (true, true) => Ok(offset),
            (true, false) => Ok(self.size(ctx)),
            (false, _) => Err(FsError::PastTheEnd),
        }
    }
}
