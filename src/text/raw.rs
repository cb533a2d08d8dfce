//! `regs/raw`: the registers as a fixed little-endian struct. docs/formats.md has the table of offsets.

use vmtree_api::x86::{Segment, Table};
use vmtree_api::{Arch, Error, ErrorKind, RegId, RegOffer, RegShape, RegValue, RegisterSet, Result};

use super::invalid;

const OP: &str = "read raw registers";
const MAGIC: [u8; 8] = *b"VMTREGS\0";
const VERSION: u16 = 1;
/// magic 8, version 2, arch 2, bytes 4, present 16.
const HEADER: usize = 32;

/// The number that stands for `arch` in the header; 0 is none.
fn arch_number(arch: Arch) -> u16 {
    match arch {
        Arch::X86_64 => 1,
        _ => 0,
    }
}

fn bytes_of(shape: RegShape) -> usize {
    match shape {
        RegShape::Word(_) => 8,
        RegShape::Segment | RegShape::Table => 16,
    }
}

/// Where each register of the architecture's table lies: its id, its offset and its length, both in bytes.
#[must_use]
pub fn layout(arch: Arch) -> Vec<(RegId, usize, usize)> {
    let mut offset = HEADER;
    let mut place = |(index, shape)| {
        let bytes = bytes_of(shape);
        offset += bytes;
        (RegId(index as u16), offset - bytes, bytes)
    };
    arch.registers().iter().map(|def| def.shape).enumerate().map(&mut place).collect()
}

/// The length of the whole struct in bytes.
#[must_use]
pub fn len(arch: Arch) -> usize {
    HEADER + arch.registers().iter().map(|def| bytes_of(def.shape)).sum::<usize>()
}

/// The struct with the offered registers of `set`; those that are not offered are zero and marked absent.
#[must_use]
pub fn encode(arch: Arch, offers: &[RegOffer], set: &RegisterSet) -> Vec<u8> {
    let mut present: u128 = 0;
    let mut body = Vec::with_capacity(len(arch));
    for (id, _, bytes) in layout(arch) {
        let offered = offers.iter().any(|offer| offer.id == id);
        match set.get(id).filter(|_| offered) {
            Some(value) => {
                present |= bit(id);
                push(&mut body, value);
            }
            None => body.resize(body.len() + bytes, 0),
        }
    }
    let mut out = Vec::with_capacity(HEADER + body.len());
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend(arch_number(arch).to_le_bytes());
    out.extend((len(arch) as u32).to_le_bytes());
    // Two 64-bit words, the lower first, are a little-endian 128-bit word.
    out.extend(present.to_le_bytes());
    out.extend(body);
    out
}

/// The bit of a register in `present`.
fn bit(id: RegId) -> u128 {
    1u128.checked_shl(id.0.into()).unwrap_or(0)
}

fn push(out: &mut Vec<u8>, value: RegValue) {
    match value {
        RegValue::Word(word) => out.extend(word.to_le_bytes()),
        RegValue::Segment(Segment { selector, base, limit, attr }) => {
            out.extend(selector.to_le_bytes());
            out.extend(attr.to_le_bytes());
            out.extend(limit.to_le_bytes());
            out.extend(base.to_le_bytes());
        }
        RegValue::Table(Table { base, limit }) => {
            out.extend(limit.to_le_bytes());
            out.extend([0; 6]);
            out.extend(base.to_le_bytes());
        }
    }
}

/// A little-endian reader over a slice; past the end it reads zeros, which the length check rules out.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((head, rest)) = self.0.split_first_chunk::<N>() else { return [0; N] };
        self.0 = rest;
        *head
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

/// The registers that the struct marks as present, in table order.
///
/// # Errors
/// [`ErrorKind::Invalid`] for another length, magic, version or architecture, or for reserved bits that are not zero;
/// [`ErrorKind::OutOfRange`] for a value wider than its register.
pub fn decode(bytes: &[u8], arch: Arch) -> Result<Vec<(RegId, RegValue)>> {
    let mut reader = Reader(bytes);
    let present = header(&mut reader, bytes.len(), arch)?;
    let mut found = Vec::new();
    for (index, def) in arch.registers().iter().enumerate() {
        let id = RegId(index as u16);
        let value = pull(&mut reader, def.name, def.shape)?;
        if present & bit(id) != 0 {
            found.push((id, value));
        }
    }
    Ok(found)
}

/// Checks the header and returns which registers are present.
fn header(reader: &mut Reader<'_>, bytes: usize, arch: Arch) -> Result<u128> {
    let refuse =
        |why: String| Err(invalid(OP, format!("{why}: write what reading this file gave, changed in place")));
    let expected = len(arch);
    if bytes != expected {
        return refuse(format!("{bytes} bytes, not {expected}"));
    }
    if reader.take() != MAGIC {
        return refuse("it does not begin with VMTREGS".into());
    }
    let (version, number, total) = (reader.u16(), reader.u16(), reader.u32());
    if version != VERSION {
        return refuse(format!("version {version}, not {VERSION}"));
    }
    if number == 0 || number != arch_number(arch) {
        return refuse(format!("architecture {number}, not {} ({arch})", arch_number(arch)));
    }
    if total as usize != expected {
        return refuse(format!("its header counts {total} bytes, not {expected}"));
    }
    let present = u128::from_le_bytes(reader.take());
    if present.checked_shr(arch.registers().len() as u32).unwrap_or(0) != 0 {
        return refuse(format!("it marks more than the {} registers there are", arch.registers().len()));
    }
    Ok(present)
}

fn pull(reader: &mut Reader<'_>, name: &str, shape: RegShape) -> Result<RegValue> {
    match shape {
        RegShape::Word(bits) => {
            let word = reader.u64();
            if bits < 64 && word >> bits != 0 {
                let why = format!("{name}: {word:#x} needs more than {bits} bits");
                return Err(Error::new(ErrorKind::OutOfRange, OP, why));
            }
            Ok(RegValue::Word(word))
        }
        RegShape::Segment => {
            let (selector, attr, limit, base) = (reader.u16(), reader.u16(), reader.u32(), reader.u64());
            Ok(RegValue::Segment(Segment { selector, base, limit, attr }))
        }
        RegShape::Table => {
            let limit = reader.u16();
            if reader.take() != [0; 6] {
                return Err(invalid(
                    OP,
                    format!("{name}: the 6 bytes behind its limit are reserved: leave them zero"),
                ));
            }
            Ok(RegValue::Table(Table { base: reader.u64(), limit }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::registers::tests::{any_set, every_offer};
    use super::*;
    use proptest::prelude::*;
    use vmtree_api::x86::Reg;

    const ARCH: Arch = Arch::X86_64;

    #[test]
    fn the_table_fits_the_struct() {
        assert!(ARCH.registers().len() <= 128, "the present bitmap has 128 bits");
        assert_ne!(arch_number(ARCH), 0);
        let (_, offset, bytes) = *layout(ARCH).last().unwrap();
        assert_eq!(offset + bytes, len(ARCH));
        assert_eq!(encode(ARCH, &[], &RegisterSet::new(ARCH)).len(), len(ARCH));
    }

    /// The table of offsets, as docs/formats.md holds it.
    fn documented_table() -> String {
        let mut text = String::from("| offset | bytes | register | bit of present |\n|---|---|---|---|\n");
        for (id, offset, bytes) in layout(ARCH) {
            let name = ARCH.registers()[usize::from(id.0)].name;
            text += &format!("| {offset} | {bytes} | {name} | {} |\n", id.0);
        }
        text
    }

    #[test]
    fn the_documentation_has_these_offsets() {
        let page = include_str!("../../docs/formats.md");
        let (table, total) = (documented_table(), format!("The whole struct has {} bytes.", len(ARCH)));
        assert!(page.contains(&table), "put this table into docs/formats.md:\n{table}");
        assert!(page.contains(&total), "docs/formats.md lacks: {total}");
    }

    #[test]
    fn fields_lie_where_they_are_said_to() {
        let mut set = RegisterSet::new(ARCH);
        let cs = Segment { selector: 0x1122, attr: 0x3344, limit: 0x5566_7788, base: 0x99aa_bbcc_ddee_ff00 };
        set.set(Reg::Cs.id(), RegValue::Segment(cs)).unwrap();
        set.set(Reg::Idtr.id(), RegValue::Table(Table { base: 0x0102, limit: 0x0304 })).unwrap();
        let raw = encode(ARCH, &every_offer(), &set);
        assert_eq!(raw[..16], *b"VMTREGS\0\x01\0\x01\0\x18\x02\0\0");
        let at = |reg: Reg| {
            let (_, offset, bytes) = layout(ARCH)[usize::from(reg.id().0)];
            &raw[offset..offset + bytes]
        };
        let cs =
            [0x22, 0x11, 0x44, 0x33, 0x88, 0x77, 0x66, 0x55, 0, 0xff, 0xee, 0xdd, 0xcc, 0xbb, 0xaa, 0x99];
        assert_eq!(at(Reg::Cs), cs);
        assert_eq!(at(Reg::Idtr), [4, 3, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn refuses_every_damaged_header() {
        let good = encode(ARCH, &every_offer(), &RegisterSet::new(ARCH));
        assert!(decode(&good, ARCH).is_ok());
        for index in 0..16 {
            let mut bad = good.clone();
            bad[index] ^= 0x80;
            assert_eq!(decode(&bad, ARCH).unwrap_err().kind(), ErrorKind::Invalid, "byte {index}");
        }
        for bad in [&good[..good.len() - 1], &[good.as_slice(), &[0]].concat(), &[]] {
            assert_eq!(decode(bad, ARCH).unwrap_err().kind(), ErrorKind::Invalid);
        }
        let mut marked = good.clone();
        marked[31] = 0x80;
        assert_eq!(decode(&marked, ARCH).unwrap_err().kind(), ErrorKind::Invalid);
        let mut padded = good;
        let (_, offset, _) = layout(ARCH)[usize::from(Reg::Gdtr.id().0)];
        padded[offset + 2] = 1;
        assert!(decode(&padded, ARCH).unwrap_err().why().contains("gdtr"));
    }

    proptest! {
        #[test]
        fn what_is_offered_reads_back(set in any_set(), keep in prop::collection::vec(any::<bool>(), 128)) {
            let offers: Vec<_> = every_offer().into_iter().zip(keep).filter(|(_, keep)| *keep).map(|(offer, _)| offer).collect();
            let found = decode(&encode(ARCH, &offers, &set), ARCH).unwrap();
            let expected: Vec<_> = offers.iter().map(|offer| (offer.id, set.get(offer.id).unwrap())).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn any_body_decodes_or_is_refused(body in prop::collection::vec(any::<u8>(), len(ARCH)), short: Vec<u8>) {
            let _ = decode(&short, ARCH);
            let _ = decode(&body, ARCH);
            let mut raw = encode(ARCH, &[], &RegisterSet::new(ARCH));
            raw[16..].copy_from_slice(&body[16..]);
            let _ = decode(&raw, ARCH);
        }
    }
}
