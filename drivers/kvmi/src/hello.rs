//! What QEMU says first, before its socket becomes the kernel's: sizes, uuid, time of the start, name.

use vmtree_api::{Error, ErrorKind, Result};

const OP: &str = "open kvmi";
/// Up to the name, and with it.
const LEAST: usize = 32;
const MOST: usize = 64 << 10;
const NAME: std::ops::Range<usize> = 32..96;

/// It, taken apart.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Hello {
    /// The VM's uuid.
    pub uuid: [u8; 16],
    /// Seconds since 1970 at which it was started; 0 where QEMU does not say.
    pub started: i64,
    /// QEMU's `-name`.
    pub name: Option<String>,
}

/// How many bytes it has, by its first four.
///
/// # Errors
/// [`ErrorKind::Protocol`] for a size that no QEMU sends.
pub fn size(first: [u8; 4]) -> Result<usize> {
    let size = u32::from_ne_bytes(first) as usize;
    if (LEAST..=MOST).contains(&size) {
        return Ok(size);
    }
    let why = format!("whoever connected is no QEMU with KVM-VMI: its handshake has {size} bytes");
    Err(Error::new(ErrorKind::Protocol, OP, why))
}

/// Takes it apart; `bytes` are all of it.
///
/// # Errors
/// As [`size`].
pub fn parse(bytes: &[u8]) -> Result<Hello> {
    let first = bytes.first_chunk().copied().unwrap_or_default();
    let short = || Error::new(ErrorKind::Protocol, OP, "the handshake is shorter than it says");
    let bytes = bytes.get(..size(first)?).ok_or_else(short)?;
    let uuid = bytes.get(4..20).and_then(|part| part.try_into().ok()).ok_or_else(short)?;
    let started = bytes.get(24..32).and_then(|part| part.try_into().ok()).ok_or_else(short)?;
    let name = bytes.get(NAME.start..bytes.len().min(NAME.end)).unwrap_or_default();
    let name = String::from_utf8_lossy(name.split(|byte| *byte == 0).next().unwrap_or_default());
    let name: String = name.chars().map(|char| if char.is_control() { '?' } else { char }).collect();
    let name = (!name.is_empty()).then_some(name);
    Ok(Hello { uuid, started: i64::from_ne_bytes(started), name })
}

/// A uuid as it is written.
#[must_use]
pub fn uuid(bytes: &[u8; 16]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default();
    [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello(name: &[u8]) -> Vec<u8> {
        let mut bytes = 96u32.to_ne_bytes().to_vec();
        bytes.extend([7; 16]);
        bytes.extend([0; 4]);
        bytes.extend(5i64.to_ne_bytes());
        bytes.extend(name);
        bytes.resize(96, 0);
        bytes
    }

    #[test]
    fn a_handshake_has_its_parts() {
        let found = parse(&hello(b"win\n10\0x")).unwrap();
        assert_eq!(found, Hello { uuid: [7; 16], started: 5, name: Some("win?10".to_owned()) });
        assert_eq!(parse(&hello(b"")).unwrap().name, None);
        assert_eq!(uuid(&[0x1f; 16]), "1f1f1f1f-1f1f-1f1f-1f1f-1f1f1f1f1f1f");
    }

    #[test]
    fn sizes_that_no_qemu_sends_are_refused() {
        assert!(size([0; 4]).is_err() && size([0xff; 4]).is_err());
        assert!(parse(&hello(b"")[..50]).is_err());
        assert!(size(*b"GET ").unwrap_err().to_string().contains("no QEMU"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
