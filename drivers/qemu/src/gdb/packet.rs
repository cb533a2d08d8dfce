//! Packets of GDB's remote protocol: `$payload#checksum`, with escapes and run lengths ("Overview" of the appendix
//! "GDB Remote Serial Protocol" in GDB's manual).

use std::fmt;

/// The longest packet that is read, in bytes, as sent and as expanded. QEMU sends no more than 4 KiB.
const LIMIT: usize = 1 << 20;

/// Why bytes are no packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Broken {
    /// The checksum is another one, or no number.
    Checksum,
    /// An escape or a run length has no end, or nothing to repeat.
    Coding,
    /// It has no end in sight.
    Long,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Checksum => "sends a packet with a wrong checksum",
            Self::Coding => "sends a packet with a broken escape or run length",
            Self::Long => "sends a packet without an end",
        })
    }
}

/// What the peer sends.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Item {
    /// A packet, decoded.
    Packet(Vec<u8>),
    /// `-`: the peer did not understand our last packet.
    Refused,
}

/// The packet with this payload, as it goes over the wire.
#[must_use]
pub fn encode(payload: &[u8]) -> Vec<u8> {
    let mut wire = vec![b'$'];
    for byte in payload {
        match byte {
            b'$' | b'#' | b'}' | b'*' => wire.extend([b'}', byte ^ 0x20]),
            _ => wire.push(*byte),
        }
    }
    let sum = checksum(wire.get(1..).unwrap_or_default());
    wire.extend(format!("#{sum:02x}").bytes());
    wire
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Bytes from the peer, in pieces of any size.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: Vec<u8>,
    /// How much of `pending` is known to be the inside of a packet.
    seen: usize,
}

impl Decoder {
    /// Takes bytes that have come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole item; `None` until more bytes have come. What stands between packets is passed over.
    ///
    /// # Errors
    /// [`Broken`]; the connection is of no use from then on.
    pub fn next_item(&mut self) -> Result<Option<Item>, Broken> {
        let first = self.pending.iter().position(|byte| matches!(byte, b'$' | b'-'));
        let Some(first) = first else {
            self.pending.clear();
            return Ok(None);
        };
        if first > 0 {
            self.pending.drain(..first);
            self.seen = 0;
        }
        if self.pending.first() == Some(&b'-') {
            self.pending.remove(0);
            return Ok(Some(Item::Refused));
        }
        let end = self.pending.iter().skip(self.seen).position(|byte| *byte == b'#');
        let Some(end) = end.map(|at| at + self.seen).filter(|end| end + 2 < self.pending.len()) else {
            // A `#` at the very end is looked for again.
            self.seen = self.pending.len().saturating_sub(2).max(1);
            return if self.pending.len() > LIMIT { Err(Broken::Long) } else { Ok(None) };
        };
        let packet: Vec<u8> = self.pending.drain(..end + 3).collect();
        self.seen = 0;
        let (body, sum) = (packet.get(1..end), packet.get(end + 1..));
        let told = sum.and_then(|sum| std::str::from_utf8(sum).ok()).and_then(hex_byte);
        match body {
            Some(body) if told == Some(checksum(body)) => Ok(Some(Item::Packet(expand(body)?))),
            _ => Err(Broken::Checksum),
        }
    }
}

fn hex_byte(digits: &str) -> Option<u8> {
    // from_str_radix takes a sign too.
    let plain = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if plain { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Undoes escapes (`}` and the byte xor 0x20) and run lengths (`*` and a count with 29 added).
fn expand(body: &[u8]) -> Result<Vec<u8>, Broken> {
    let mut payload = Vec::with_capacity(body.len());
    let mut bytes = body.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'}' => payload.push(bytes.next().ok_or(Broken::Coding)? ^ 0x20),
            b'*' => {
                let count = bytes.next().and_then(|count| count.checked_sub(29)).ok_or(Broken::Coding)?;
                let last = *payload.last().ok_or(Broken::Coding)?;
                payload.resize(payload.len() + usize::from(count), last);
            }
            _ => payload.push(*byte),
        }
        if payload.len() > LIMIT {
            return Err(Broken::Long);
        }
    }
    Ok(payload)
}

/// Lower-case hexadecimal digits of `bytes`.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes behind pairs of hexadecimal digits; `None` if there is anything else, as the `x` of a value that can't be had.
#[must_use]
pub fn from_hex(digits: &[u8]) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.chunks(2).map(|pair| hex_byte(std::str::from_utf8(pair).ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(wire: &[u8]) -> Result<Vec<Item>, Broken> {
        let mut decoder = Decoder::default();
        decoder.push(wire);
        let mut items = Vec::new();
        while let Some(item) = decoder.next_item()? {
            items.push(item);
        }
        Ok(items)
    }

    fn packet(text: &str) -> Item {
        Item::Packet(text.as_bytes().to_vec())
    }

    #[test]
    fn reads_packets_acks_and_run_lengths() {
        assert_eq!(all(b"+$OK#9a+$#00-"), Ok(vec![packet("OK"), packet(""), Item::Refused]));
        // GDB's manual: `0* ` is 0000.
        assert_eq!(all(b"$0* #7a"), Ok(vec![packet("0000")]));
        assert_eq!(all(b"$}\x03#80"), Ok(vec![packet("#")]));
        assert_eq!(all(b"$OK#9"), Ok(vec![]));
    }

    #[test]
    fn what_is_broken_is_told() {
        assert_eq!(all(b"$OK#9b"), Err(Broken::Checksum));
        assert_eq!(all(b"$OK#+a"), Err(Broken::Checksum));
        assert_eq!(all(b"$* #4a"), Err(Broken::Coding));
        assert_eq!(all(b"$a}#de"), Err(Broken::Coding));
        let mut long = vec![b'$'; LIMIT + 2];
        assert_eq!(all(&long), Err(Broken::Long));
        long.clear();
        long.extend(b"$a");
        long.extend(b"*~".repeat(LIMIT / 90));
        let sum = checksum(&long[1..]);
        long.extend(format!("#{sum:02x}").bytes());
        assert_eq!(all(&long), Err(Broken::Long));
    }

    #[test]
    fn hex_is_pairs_of_digits_alone() {
        assert_eq!(from_hex(b"00ff"), Some(vec![0, 255]));
        for text in ["0", "xx", "+1", "0 "] {
            assert_eq!(from_hex(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_no_panic_and_ends(bytes: Vec<u8>) {
            let _ = all(&bytes);
        }

        #[test]
        fn what_is_encoded_is_read_back_from_any_pieces(
            payloads in prop::collection::vec(any::<Vec<u8>>(), 1..4), cut in 1usize..9
        ) {
            let mut decoder = Decoder::default();
            let mut read = Vec::new();
            let wire: Vec<u8> = payloads.iter().flat_map(|payload| encode(payload)).collect();
            for piece in wire.chunks(cut) {
                decoder.push(piece);
                while let Some(item) = decoder.next_item().unwrap() {
                    read.push(item);
                }
            }
            let expected: Vec<Item> = payloads.into_iter().map(Item::Packet).collect();
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn hex_reads_back(bytes: Vec<u8>) {
            prop_assert_eq!(from_hex(to_hex(&bytes).as_bytes()), Some(bytes));
        }
    }
}
