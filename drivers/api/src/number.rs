//! The one reader of numbers: hexadecimal (`0x`), decimal and binary (`0b`), with `_` between digits.

use crate::{Error, ErrorKind, Result};

const OP: &str = "read number";

/// Reads an unsigned number of at most 64 bits.
///
/// # Errors
/// [`ErrorKind::Invalid`] if `text` is no number, [`ErrorKind::OutOfRange`] if it needs more than 64 bits.
pub fn parse(text: &str) -> Result<u64> {
    let (radix, digits) = digits_of(text)?;
    u64::from_str_radix(&digits, radix).map_err(|_| too_wide(text, 64))
}

/// Reads an unsigned number of at most 128 bits: the data of a memory access, the result of CPUID.
///
/// # Errors
/// As [`parse`], with 128 bits.
pub fn parse_wide(text: &str) -> Result<u128> {
    let (radix, digits) = digits_of(text)?;
    u128::from_str_radix(&digits, radix).map_err(|_| too_wide(text, 128))
}

/// The radix of a number and its digits, checked.
fn digits_of(text: &str) -> Result<(u32, String)> {
    let (radix, digits) = match text.get(..2) {
        Some("0x" | "0X") => (16, &text[2..]),
        Some("0b" | "0B") => (2, &text[2..]),
        _ => (10, text),
    };
    let separated = digits.split('_').any(str::is_empty);
    let digits = digits.replace('_', "");
    if separated || !digits.chars().all(|digit| digit.is_digit(radix)) {
        let why = format!("'{text}' is no number: write 0x2a, 42 or 0b101010");
        return Err(Error::new(ErrorKind::Invalid, OP, why));
    }
    Ok((radix, digits))
}

fn too_wide(text: &str, bits: u32) -> Error {
    Error::new(ErrorKind::OutOfRange, OP, format!("'{text}' needs more than {bits} bits"))
}

/// Reads a number that fits `bits` bits.
///
/// # Errors
/// As [`parse`]; [`ErrorKind::OutOfRange`] also if it needs more than `bits` bits.
pub fn parse_bits(text: &str, bits: u32) -> Result<u64> {
    let value = parse(text)?;
    if bits < 64 && value >> bits != 0 {
        return Err(too_wide(text, bits));
    }
    Ok(value)
}

/// Reads a size in bytes: a number, or a number with the suffix K, M, G or T (powers of 1024).
///
/// # Errors
/// As [`parse`].
pub fn parse_size(text: &str) -> Result<u64> {
    let (digits, shift) = match text.as_bytes().last() {
        // In hexadecimal no suffix collides with a digit: K, M, G and T are none.
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 30),
        Some(b't' | b'T') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let value = parse(digits)?;
    if value.leading_zeros() < shift {
        return Err(too_wide(text, 64));
    }
    Ok(value << shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_each_radix() {
        for text in ["0x2a", "0X2A", "42", "0b101010", "0x0_2a", "00042"] {
            assert_eq!(parse(text).unwrap(), 42, "{text}");
        }
        assert_eq!(parse("0xffffffffffffffff").unwrap(), u64::MAX);
    }

    #[test]
    fn refuses_what_is_no_number() {
        for text in ["", "0x", "0b", "0b2", "-1", "+1", "1.5", "0x_", "1__0", "_1", "0xg", "ä1", "1 "] {
            assert_eq!(parse(text).unwrap_err().kind(), ErrorKind::Invalid, "{text}");
        }
        assert_eq!(parse("0x10000000000000000").unwrap_err().kind(), ErrorKind::OutOfRange);
        assert_eq!(parse_bits("256", 8).unwrap_err().kind(), ErrorKind::OutOfRange);
    }

    #[test]
    fn reads_wide_numbers() {
        assert_eq!(parse_wide("0xffffffff_ffffffff_ffffffff_ffffffff").unwrap(), u128::MAX);
        assert_eq!(parse_wide("0x1_0000_0000_0000_0000").unwrap(), 1 << 64);
        let error = parse_wide("0x100000000000000000000000000000000").unwrap_err();
        assert!(error.kind() == ErrorKind::OutOfRange && error.why().contains("128 bits"), "{error}");
        assert_eq!(parse_wide("0x").unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[test]
    fn reads_sizes() {
        assert_eq!(parse_size("256M").unwrap(), 256 << 20);
        assert_eq!(parse_size("0x10k").unwrap(), 16 << 10);
        assert_eq!(parse_size("4T").unwrap(), 4 << 40);
        assert_eq!(parse_size("16777216T").unwrap_err().kind(), ErrorKind::OutOfRange);
        assert_eq!(parse_size("M").unwrap_err().kind(), ErrorKind::Invalid);
    }

    proptest! {
        #[test]
        fn reads_back_what_it_prints(value: u64) {
            prop_assert_eq!(parse(&format!("{value:#x}")).unwrap(), value);
            prop_assert_eq!(parse(&format!("{value:#b}")).unwrap(), value);
            prop_assert_eq!(parse(&value.to_string()).unwrap(), value);
        }

        #[test]
        fn never_panics(text: String) {
            let _ = parse(&text);
            let _ = parse_size(&text);
        }
    }
}
