//! ram/NAME by the kernel's passthrough: reads, writes and mmap go to the block's file without us.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use fuser::{BackingId, InitFlags, KernelConfig, ReplyOpen};
use parking_lot::Mutex;
use rustix::thread::{CapabilitySet, capabilities};
use vmtree_api::{Block, Error, ErrorKind};

use crate::error::{FsError, FsResult};
use crate::tree::{Place, Tree};

/// One backing file an inode, shared by its opens and kept to the last release: the kernel refuses to mix.
pub struct Passthrough {
    on: bool,
    /// How ram/* is served, in words.
    pub how: String,
    backings: Mutex<HashMap<u64, (Arc<BackingId>, usize)>>,
}

impl Passthrough {
    /// None, for the reason given.
    fn off(why: &str) -> Self {
        Self { on: false, how: format!("no: {why}; ram/* is direct I/O"), backings: Mutex::default() }
    }

    /// Decides once, at mount, so that every open of an inode is of the same mode.
    pub fn negotiate(config: &mut KernelConfig) -> Self {
        if !config.capabilities().contains(InitFlags::FUSE_PASSTHROUGH) {
            return Self::off("the kernel is older than 6.9");
        }
        let rights = capabilities(None).map(|sets| sets.effective);
        if !rights.is_ok_and(|rights| rights.contains(CapabilitySet::SYS_ADMIN)) {
            return Self::off("passthrough takes CAP_SYS_ADMIN");
        }
        let asked = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
        if !asked || config.set_max_stack_depth(1).is_err() {
            return Self::off("the kernel refused it");
        }
        Self { on: true, how: "yes".to_owned(), backings: Mutex::default() }
    }

    /// The backing of a block for one more open of its inode; `None` where ram/* is direct I/O.
    pub fn open(
        &self,
        ino: u64,
        block: &Block,
        reply: &ReplyOpen,
    ) -> std::io::Result<Option<Arc<BackingId>>> {
        if !self.on {
            return Ok(None);
        }
        let mut backings = self.backings.lock();
        if let Some((backing, opens)) = backings.get_mut(&ino) {
            *opens += 1;
            return Ok(Some(backing.clone()));
        }
        let backing = Arc::new(reply.open_backing(&*block.file)?);
        backings.insert(ino, (backing.clone(), 1));
        Ok(Some(backing))
    }

    /// One open of the inode less.
    pub fn release(&self, ino: u64) {
        let mut backings = self.backings.lock();
        if let Some((_, opens)) = backings.get_mut(&ino) {
            *opens -= 1;
            if *opens == 0 {
                backings.remove(&ino);
            }
        }
    }
}

/// Reads a block by ourselves, where the kernel can't pass it through; nothing at or past its end.
pub fn read_at(tree: &Tree, place: Place, offset: u64, buf: &mut [u8]) -> FsResult<usize> {
    Ok(block_of(tree, place)?.file.read_at(buf, offset).map_err(io_error)?)
}

/// Writes a block by ourselves. It can't grow: the guest's memory has the size it has.
pub fn write_at(tree: &Tree, place: Place, offset: u64, data: &[u8]) -> FsResult<usize> {
    let block = block_of(tree, place)?;
    let room = usize::try_from(block.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
    let part = data.get(..room.min(data.len())).unwrap_or(data);
    if part.is_empty() && !data.is_empty() {
        return Err(FsError::NoMemory(format!("{offset:#x} is past the end of ram/{}", block.name)));
    }
    Ok(block.file.write_at(part, offset).map_err(io_error)?)
}

fn block_of(tree: &Tree, place: Place) -> FsResult<Block> {
    tree.block(place).ok_or_else(|| FsError::NoEntry("that block of RAM is gone".to_owned()))
}

fn io_error(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, "ram file", "the block's file failed").caused_by(error)
}
