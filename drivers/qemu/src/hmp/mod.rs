//! What QEMU's human monitor prints, read back: pure functions over text.

pub mod answers;
pub mod mtree;
pub mod ramblock;
pub mod registers;

/// Reads QEMU's `%016x` fields: 1 to 16 hexadecimal digits, with or without `0x`.
fn hex(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if plain { u64::from_str_radix(digits, 16).ok() } else { None }
}
