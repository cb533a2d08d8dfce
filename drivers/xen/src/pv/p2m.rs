//! A PV guest's table of its frames: which of the machine's is at each of its own (physical-to-machine). The guest keeps it,
//! in its own memory, and may write anything there: Xen maps none but this domain's frames, whatever it says.

use std::collections::HashMap;
use std::io::{Error, Result};
use std::sync::Arc;

use vmtree_api::x86::bits::{CR0_PG, CR4_PAE, EFER_LMA, EFER_NXE};
use vmtree_api::x86::{PagingMode, walk};
use vmtree_api::{Gpa, Gva, PAGE_SIZE};

use super::root::{Root, Table};
use crate::hypervisor::{Frames, Mapped};

/// The entries of a page of it.
const ENTRIES: u64 = PAGE_SIZE / 8;
/// How many pages of tables are kept mapped while it is read.
const KEPT: usize = 16;
/// An entry of a frame without memory (INVALID_P2M_ENTRY of Linux).
pub const NONE: u64 = u64::MAX;
/// Entries with one of these are no memory of this domain: a device's, or another domain's (Linux: IDENTITY_FRAME_BIT,
/// FOREIGN_FRAME_BIT).
const NOT_OURS: u64 = 3 << 62;
/// No machine has so many frames: a physical address has 52 bits.
pub const FRAMES: u64 = 1 << 40;

/// The machine's frame that an entry means.
#[must_use]
pub fn frame(entry: u64) -> Option<u64> {
    (entry & NOT_OURS == 0 && entry < FRAMES).then_some(entry)
}

/// A page of tables.
type Page = Arc<dyn Mapped>;

/// An entry as it was read, and where it is read again.
#[derive(Clone)]
pub struct Entry {
    /// What it said.
    pub value: u64,
    place: Option<(Page, usize)>,
}

impl Entry {
    /// What it says now.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.place.as_ref().map_or(NONE, |(page, offset)| word(&**page, *offset))
    }
}

fn word(page: &dyn Mapped, offset: usize) -> u64 {
    let mut bytes = [0; 8];
    page.read(0, offset, &mut bytes);
    u64::from_le_bytes(bytes)
}

/// Reads the table, for as long as it takes to read a few entries.
pub struct Reader<'a> {
    machine: &'a dyn Frames,
    root: Root,
    pages: HashMap<u64, Option<Page>>,
    /// The page of entries that was read last: its number, or its virtual address.
    last: Option<(u64, Option<Page>)>,
}

impl<'a> Reader<'a> {
    /// From a root on, by the machine's frames.
    #[must_use]
    pub fn new(machine: &'a dyn Frames, root: Root) -> Self {
        Self { machine, root, pages: HashMap::new(), last: None }
    }

    /// The entry of a frame; where the table has no page for it, it has no memory.
    ///
    /// # Errors
    /// Xen maps nothing of the domain.
    pub fn entry(&mut self, frame: u64) -> Result<Entry> {
        let none = Entry { value: NONE, place: None };
        if frame >= self.root.frames {
            return Ok(none);
        }
        let (number, offset) = match self.root.table {
            Table::Tree(_) => (frame / ENTRIES, frame % ENTRIES * 8),
            Table::List { at, .. } => match at.checked_add(frame * 8) {
                Some(address) => (address / PAGE_SIZE, address % PAGE_SIZE),
                None => return Ok(none),
            },
        };
        let page = match &self.last {
            Some((last, page)) if *last == number => page.clone(),
            _ => {
                let page = self.leaf(number)?;
                self.last = Some((number, page.clone()));
                page
            }
        };
        let Some(page) = page else { return Ok(none) };
        let offset = offset as usize;
        Ok(Entry { value: word(&*page, offset), place: Some((page, offset)) })
    }

    /// A page of entries.
    fn leaf(&mut self, number: u64) -> Result<Option<Page>> {
        let frame = match self.root.table {
            Table::Tree(top) => {
                let Some(middle) = self.word(top, number / ENTRIES)? else { return Ok(None) };
                self.word(middle, number % ENTRIES)?
            }
            Table::List { cr3, .. } => self.walk(cr3, number)?,
        };
        frame.map_or(Ok(None), |frame| self.map(frame))
    }

    /// A number of a page of the tree.
    fn word(&mut self, frame: u64, index: u64) -> Result<Option<u64>> {
        if index >= ENTRIES {
            return Ok(None);
        }
        Ok(self.page(frame)?.map(|page| word(&*page, index as usize * 8)))
    }

    /// The machine's frame of a page of virtual memory, by page tables that hold the machine's frames.
    fn walk(&mut self, cr3: u64, page: u64) -> Result<Option<u64>> {
        let mode = PagingMode { cr0: CR0_PG, cr3, cr4: CR4_PAE, efer: EFER_LMA | EFER_NXE };
        let read = |at: Gpa| {
            let found = self.page(at.gfn().0)?;
            Ok::<_, Error>(found.map_or(0, |page| word(&*page, at.page_offset() as usize)))
        };
        let found = walk(&mode, Gva(page * PAGE_SIZE), read)?;
        Ok(found.ok().map(|found| found.gpa.gfn().0))
    }

    /// A page of tables, kept for the next entry.
    fn page(&mut self, frame: u64) -> Result<Option<Page>> {
        if let Some(page) = self.pages.get(&frame) {
            return Ok(page.clone());
        }
        if self.pages.len() >= KEPT {
            self.pages.clear();
        }
        let page = self.map(frame)?;
        self.pages.insert(frame, page.clone());
        Ok(page)
    }

    fn map(&self, frame: u64) -> Result<Option<Page>> {
        if frame >= FRAMES {
            return Ok(None);
        }
        let (mapped, there) = self.machine.map(&[frame])?;
        Ok((there.first() == Some(&true)).then(|| Arc::from(mapped)))
    }
}
