//! Frames: the length of what follows (4 bytes), the type (2), zero (2), then the body.

use crate::Malformed;

/// The bytes before the body.
pub const HEADER: usize = 8;
/// The longest body. A peer that announces a longer one is let go of before a byte of it is kept.
pub const LONGEST: usize = 1 << 20;

/// Puts a frame together in `out`, its body made by `body`.
pub(crate) fn put(kind: u16, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    body(out);
    let length = (out.len() - start - HEADER) as u32;
    if let Some(place) = out.get_mut(start..start + 4) {
        place.copy_from_slice(&length.to_le_bytes());
    }
}

/// Cuts a stream into frames. Holds at most one frame and one read.
#[derive(Default)]
pub struct Splitter {
    bytes: Vec<u8>,
    taken: usize,
}

impl Splitter {
    /// Adds what was read.
    pub fn add(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame: its type and its body. `None` until more is added.
    ///
    /// # Errors
    /// The stream is no stream of frames; it is of no use from here on.
    pub fn frame(&mut self) -> Result<Option<(u16, &[u8])>, Malformed> {
        let rest = self.bytes.get(self.taken..).unwrap_or_default();
        let Some((header, rest)) = rest.split_first_chunk::<HEADER>() else { return Ok(None) };
        let [l0, l1, l2, l3, k0, k1, z0, z1] = *header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > LONGEST || (z0, z1) != (0, 0) {
            return Err(Malformed("what it sends is no frame"));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        self.taken += HEADER + length;
        Ok(Some((u16::from_le_bytes([k0, k1]), body)))
    }
}
