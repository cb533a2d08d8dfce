//! A hypervisor for tests: memory and domains that only exist here.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Result;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::hypervisor::{Frames, Mapped};

type Page = Arc<Mutex<Vec<u8>>>;

/// Memory, frame by frame.
#[derive(Default)]
pub struct Ram {
    pages: Mutex<BTreeMap<u64, Page>>,
    mapped: AtomicU64,
    alive: Arc<AtomicU64>,
    /// The domain is being destroyed.
    pub dead: AtomicBool,
    /// Frames that a PV guest's Xen lets nobody write.
    pub tables: Mutex<BTreeSet<u64>>,
}

fn blank() -> Page {
    Arc::new(Mutex::new(vec![0; 4096]))
}

impl Ram {
    /// Blank memory at these frames.
    pub fn new(frames: &[Range<u64>]) -> Self {
        let pages = frames.iter().cloned().flatten().map(|frame| (frame, blank())).collect();
        Self { pages: Mutex::new(pages), ..Self::default() }
    }

    /// How often something was mapped.
    pub fn mapped(&self) -> u64 {
        self.mapped.load(Ordering::Relaxed)
    }

    /// How many mappings there are.
    pub fn alive(&self) -> u64 {
        self.alive.load(Ordering::Relaxed)
    }

    /// Sets a word of a frame.
    pub fn set(&self, frame: u64, index: usize, value: u64) {
        let mut pages = self.pages.lock();
        pages.entry(frame).or_insert_with(blank).lock()[index * 8..][..8]
            .copy_from_slice(&value.to_le_bytes());
    }

    /// A word of a frame.
    pub fn word(&self, frame: u64, index: usize) -> u64 {
        u64::from_le_bytes(self.pages.lock()[&frame].lock()[index * 8..][..8].try_into().unwrap())
    }

    /// Puts other memory at a frame; who has it mapped keeps the old.
    pub fn replace(&self, frame: u64) {
        self.pages.lock().insert(frame, blank());
    }
}

struct Pages(Vec<Option<Page>>, Arc<AtomicU64>);

impl Frames for Ram {
    fn map(&self, frames: &[u64]) -> Result<(Box<dyn Mapped>, Vec<bool>)> {
        self.mapped.fetch_add(1, Ordering::Relaxed);
        self.alive.fetch_add(1, Ordering::Relaxed);
        let pages = self.pages.lock();
        let found: Vec<Option<Page>> = frames.iter().map(|frame| pages.get(frame).cloned()).collect();
        let there = found.iter().map(Option::is_some).collect();
        Ok((Box::new(Pages(found, Arc::clone(&self.alive))), there))
    }

    fn map_to_write(&self, frames: &[u64]) -> Result<(Box<dyn Mapped>, Vec<bool>)> {
        let (mapped, mut there) = self.map(frames)?;
        let tables = self.tables.lock();
        for (frame, there) in frames.iter().zip(&mut there) {
            *there &= !tables.contains(frame);
        }
        Ok((mapped, there))
    }

    fn present(&self, frames: &[u64], there: &mut [bool]) -> Result<()> {
        let pages = self.pages.lock();
        for (frame, there) in frames.iter().zip(there) {
            *there = pages.contains_key(frame);
        }
        Ok(())
    }

    fn alive(&self) -> bool {
        !self.dead.load(Ordering::Relaxed)
    }

    fn told(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}

impl Mapped for Pages {
    fn read(&self, page: usize, offset: usize, buf: &mut [u8]) {
        let page = self.0[page].as_ref().unwrap().lock();
        buf.copy_from_slice(&page[offset..offset + buf.len()]);
    }

    fn write(&self, page: usize, offset: usize, data: &[u8]) {
        let mut page = self.0[page].as_ref().unwrap().lock();
        page[offset..offset + data.len()].copy_from_slice(data);
    }

    fn moved(&self, _page: usize) -> bool {
        false
    }

    fn machine(&self, _page: usize) -> Option<u64> {
        None
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::Relaxed);
    }
}
