//! Single bits: test and change, scan, count.

use super::flags::{CF, STATUS, ZF, when};
use super::operand::sign_extend;
use super::{Exception, Outcome, Step};

/// The bit that a BT instruction names: the number in its word, and the word's address if it is in memory.
struct Place {
    bit: u32,
    address: Option<u64>,
}

/// In memory, a register operand is a signed index into a string of bits that starts at the operand (Intel SDM
/// volume 2, 3.1.1.9, "Bit(BitBase, BitOffset)"); an immediate wraps in the word.
fn place(s: &mut Step, size: u32) -> Result<Place, Exception> {
    let index = s.read(1)?;
    let bit = index as u32 & (size * 8 - 1);
    let string = s.in_memory(0) && s.ins.op_kind(1) == iced_x86::OpKind::Register;
    let words = if string { sign_extend(index, size) >> (size * 8).trailing_zeros() } else { 0 };
    let extra = words.wrapping_mul(i64::from(size)) as u64;
    Ok(Place { bit, address: s.in_memory(0).then(|| s.address(0, extra)) })
}

/// BT.
pub(super) fn test(s: &mut Step) -> Outcome {
    let size = s.size(0);
    let place = place(s, size)?;
    let word = match place.address {
        Some(address) => s.load(address, size)?,
        None => s.read(0)?,
    };
    s.set_flags(CF, word >> place.bit);
    s.next()
}

/// BTS, BTR and BTC: `change` makes the new word of the old one and the bit's mask.
pub(super) fn change(s: &mut Step, change: fn(u64, u64) -> u64) -> Outcome {
    let size = s.size(0);
    let place = place(s, size)?;
    let old = match place.address {
        Some(address) => s.load_for_write(address, size)?,
        None => s.read(0)?,
    };
    let new = change(old, 1 << place.bit);
    match place.address {
        Some(address) => s.store(address, size, new)?,
        None => s.write(0, new)?,
    }
    s.set_flags(CF, old >> place.bit);
    s.next()
}

/// BSF and BSR: a source of 0 leaves the destination, as CPUs do and AMD documents.
pub(super) fn scan(s: &mut Step, find: fn(u64) -> u32) -> Outcome {
    let source = s.read(1)?;
    if source != 0 {
        s.write(0, u64::from(find(source)))?;
    }
    s.set_flags(ZF, when(source == 0, ZF));
    s.next()
}

/// TZCNT, and LZCNT if `leading`: a source of 0 counts as the operand size.
pub(super) fn count_zeros(s: &mut Step, leading: bool) -> Outcome {
    let bits = s.size(0) * 8;
    let source = s.read(1)?;
    let count = if leading { source.leading_zeros() + bits - 64 } else { source.trailing_zeros().min(bits) };
    s.write(0, u64::from(count))?;
    s.set_flags(CF | ZF, when(source == 0, CF) | when(count == 0, ZF));
    s.next()
}

/// POPCNT, which clears all flags but ZF.
pub(super) fn population(s: &mut Step) -> Outcome {
    let source = s.read(1)?;
    s.write(0, u64::from(source.count_ones()))?;
    s.set_flags(STATUS, when(source == 0, ZF));
    s.next()
}

/// BSWAP; of a 16-bit register, which is undefined, the result is 0 as on CPUs.
pub(super) fn swap_bytes(s: &mut Step) -> Outcome {
    let value = s.read(0)?;
    let swapped = match s.size(0) {
        8 => value.swap_bytes(),
        4 => u64::from((value as u32).swap_bytes()),
        _ => 0,
    };
    s.write(0, swapped)?;
    s.next()
}
