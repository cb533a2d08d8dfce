//! Private copies of frames, outside the guest's map.

use vmtree_api::{Error, ErrorKind, Result};

/// In a place: it is an address among the private copies. No physical address has this bit.
pub const COPY: u64 = 1 << 63;

/// All private copies.
#[derive(Debug)]
pub struct Copies {
    pages: Vec<Option<Box<[u8; 4096]>>>,
    free: Vec<usize>,
    most: u64,
}

impl Copies {
    /// None so far, and at most so many.
    pub fn new(most: u64) -> Self {
        Self { pages: Vec::new(), free: Vec::new(), most }
    }

    /// Keeps a page and gives its place.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`].
    pub fn add(&mut self, page: Box<[u8; 4096]>) -> Result<u64> {
        if let Some(index) = self.free.pop() {
            if let Some(slot) = self.pages.get_mut(index) {
                *slot = Some(page);
            }
            return Ok(COPY | (index as u64) << 12);
        }
        if self.pages.len() as u64 >= self.most {
            let why =
                format!("there are {} private copies already, as many as frames of RAM; undo one", self.most);
            return Err(Error::new(ErrorKind::NoSpace, "remap", why));
        }
        self.pages.push(Some(page));
        Ok(COPY | (self.pages.len() as u64 - 1) << 12)
    }

    /// Gives a page back.
    pub fn free(&mut self, place: u64) {
        let index = index(place);
        if self.pages.get_mut(index).and_then(Option::take).is_some() {
            self.free.push(index);
        }
    }

    /// Bytes of one page.
    pub fn part(&self, place: u64, bytes: usize) -> Option<&[u8]> {
        let start = (place & 0xfff) as usize;
        self.pages.get(index(place)).filter(|_| place & COPY != 0)?.as_ref()?.get(start..start + bytes)
    }

    /// As [`Copies::part`].
    pub fn part_mut(&mut self, place: u64, bytes: usize) -> Option<&mut [u8]> {
        let start = (place & 0xfff) as usize;
        let page = self.pages.get_mut(index(place)).filter(|_| place & COPY != 0)?;
        page.as_mut()?.get_mut(start..start + bytes)
    }
}

fn index(place: u64) -> usize {
    ((place & !COPY) >> 12) as usize
}
