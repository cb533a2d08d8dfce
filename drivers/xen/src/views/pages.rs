//! Pages that the driver adds to the domain, beyond the guest's own, for private copies.

use vmtree_api::{Error, ErrorKind, PAGE_SIZE, Result};

use super::book::Copies;
use crate::again::again;
use crate::error::refused;
use crate::world::{World, note};

/// How many more pages the domain is let have at a time.
const ROOM: u64 = 64;
/// Where private copies begin at the earliest: above all that is below 4 GiB.
const COPIES: u64 = 0x10_1000;

impl World {
    /// A page of our own with what a frame has now.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] where no page can be had.
    pub fn copy(&mut self, op: &'static str, of: u64) -> Result<u64> {
        let frame = match self.views.copies.free.pop() {
            Some(frame) => frame,
            None => self.add_page(op)?,
        };
        let mut page = [0; PAGE_SIZE as usize];
        let memory = self.shared.memory.mappings();
        let copied =
            memory.read(of * PAGE_SIZE, &mut page).and_then(|_| memory.write(frame * PAGE_SIZE, &page));
        if let Err(error) = copied {
            self.views.copies.free.push(frame);
            return Err(refused(op, "the frame can't be copied", error));
        }
        Ok(frame)
    }

    fn add_page(&mut self, op: &'static str) -> Result<u64> {
        if self.views.copies.first == 0 {
            let highest = self.xen.highest().map_err(|error| refused(op, "Xen does not tell", error))?;
            self.views.copies.first = (highest + 1).max(COPIES);
            self.views.copies.max = self.info.max_pages;
        }
        let copies = &self.views.copies;
        let (frame, count, max) = (copies.first + copies.count, copies.count, copies.max);
        self.note(note::PAGES, &format!("{} {} {max}", copies.first, count + 1))?;
        if count % ROOM == 0 {
            let room = self.xen.set_max(max + count + ROOM);
            room.map_err(|error| self.refused(op, "Xen does not let the domain have more pages", error))?;
        }
        match self.xen.add(frame) {
            Ok(()) => {}
            Err(error) => {
                let _ = self.note(note::PAGES, &format!("{} {count} {max}", self.views.copies.first));
                let why = "Xen has no page for a copy: the host's memory is full";
                let error = self.refused(op, why, error);
                return Err(Error::new(ErrorKind::NoSpace, op, error.to_string()));
            }
        }
        self.views.copies.count += 1;
        self.info.pages += 1;
        self.shared.memory.set_ours(self.views.added());
        Ok(frame)
    }

    /// Takes our pages away; no view shows them any more.
    pub fn drop_copies(&mut self) {
        if self.views.copies.first == 0 {
            return;
        }
        let added = self.views.added();
        self.shared.memory.set_ours(Vec::new());
        if !added.is_empty()
            && let Err(error) = again(|| self.xen.remove(&added))
        {
            log::error!("{} pages stay in the domain: {error}", added.len());
        }
        if let Err(error) = again(|| self.xen.set_max(self.views.copies.max)) {
            log::error!("the domain may have more pages than before: {error}");
        }
        self.info.pages = self.info.pages.saturating_sub(added.len() as u64);
        self.views.copies = Copies::default();
        self.undo.done(note::PAGES);
    }
}
