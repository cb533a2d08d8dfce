//! A stream of binary records, as an event file gives it.

use std::io::{Error, ErrorKind, Read, Result};

use super::{RECORD_BYTES, decode};
use crate::events::record::Item;

/// How many records are asked for at once: a reader that keeps up gets fewer, one that is behind catches up with few calls.
const BATCH: usize = 896;

/// Reads the items of a stream of binary records: of an event file opened with `format=binary`, or of a copy of one.
///
///     # use vmtree::text::record::{Reader, encode};
///     # use vmtree::events::record::Item;
///     # let file = std::io::Cursor::new(encode(&Item::Lost { first: 1, last: 2 }));
///     for item in Reader::new(file) {
///         println!("{:?}", item?);
///     }
///     # Ok::<(), std::io::Error>(())
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    buf: Vec<u8>,
    /// Where in `buf` the bytes begin and end that were read and not yet given.
    start: usize,
    end: usize,
}

impl<R: Read> Reader<R> {
    /// A reader of `from`, which stands at the start of a record.
    pub fn new(from: R) -> Self {
        Self { from, buf: vec![0; BATCH * RECORD_BYTES], start: 0, end: 0 }
    }

    /// What is read from, to write an answer to.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.from
    }

    /// The next item; `None` at the end of the stream. Waits only where the stream does, and asks it for more only when all
    /// it gave is given.
    ///
    /// # Errors
    /// What the stream fails with: the next call goes on where this one stopped, so a stream that doesn't block can be asked
    /// again. [`ErrorKind::UnexpectedEof`] where it ends inside a record, [`ErrorKind::InvalidData`] for bytes that are no
    /// record; the next call goes on behind them.
    pub fn next_item(&mut self) -> Result<Option<Item>> {
        while self.end - self.start < RECORD_BYTES {
            if self.fill()? == 0 {
                return self.finish();
            }
        }
        let record = &self.buf[self.start..self.start + RECORD_BYTES];
        self.start += RECORD_BYTES;
        decode(record).map(Some).map_err(|error| Error::new(ErrorKind::InvalidData, error))
    }

    /// Reads more, and returns how many bytes: 0 at the end.
    fn fill(&mut self) -> Result<usize> {
        self.buf.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        loop {
            match self.from.read(&mut self.buf[self.end..]) {
                Ok(bytes) => {
                    // A reader that claims more than it was given room for is not believed.
                    self.end = self.buf.len().min(self.end + bytes);
                    return Ok(bytes);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The end of the stream: nothing, or part of a record, which is told once.
    fn finish(&mut self) -> Result<Option<Item>> {
        let rest = self.end - self.start;
        (self.start, self.end) = (0, 0);
        match rest {
            0 => Ok(None),
            _ => {
                let why = format!("the stream ends {rest} bytes into a record of {RECORD_BYTES}");
                Err(Error::new(ErrorKind::UnexpectedEof, why))
            }
        }
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Item>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_item().transpose()
    }
}
