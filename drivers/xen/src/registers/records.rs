//! The records of a saved HVM domain (Xen: public/arch-x86/hvm/save.h): a row of typed, numbered byte strings.

use std::ops::Range;

use vmtree_api::{Error, ErrorKind, Result};

/// The types of record that the driver looks into.
pub mod kind {
    /// The end mark.
    pub const END: u16 = 0;
    /// The header, always first.
    pub const HEADER: u16 = 1;
    /// The registers of a vCPU.
    pub const CPU: u16 = 2;
    /// A local APIC.
    pub const LAPIC: u16 = 5;
    /// Its registers.
    pub const LAPIC_REGS: u16 = 6;
    /// MTRRs and PAT.
    pub const MTRR: u16 = 14;
    /// Extended state, with XCR0.
    pub const XSAVE: u16 = 16;
    /// Further MSRs.
    pub const MSR: u16 = 20;
}

/// The bytes of a descriptor: type, number, length.
const DESCRIPTOR: usize = 8;
const OP: &str = "read the domain's state";

/// A record and where its content lies.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Place {
    kind: u16,
    instance: u16,
    content: Range<usize>,
}

/// All records of a domain.
#[derive(Clone, Debug)]
pub struct Records {
    bytes: Vec<u8>,
    places: Vec<Place>,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.get(..N)?.try_into().ok()
}

impl Records {
    /// Takes records apart.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] if they don't fit their own lengths, or have no end.
    pub fn parse(bytes: Vec<u8>) -> Result<Self> {
        let broken = || Error::new(ErrorKind::Protocol, OP, "Xen's records of the domain have no end");
        let mut places = Vec::new();
        let mut at = 0;
        loop {
            let kind = u16::from_le_bytes(number(&bytes, at).ok_or_else(broken)?);
            let instance = u16::from_le_bytes(number(&bytes, at + 2).ok_or_else(broken)?);
            let length = u32::from_le_bytes(number(&bytes, at + 4).ok_or_else(broken)?) as usize;
            let start = at + DESCRIPTOR;
            let end = start.checked_add(length).filter(|end| *end <= bytes.len()).ok_or_else(broken)?;
            if kind == kind::END {
                return Ok(Self { bytes, places });
            }
            places.push(Place { kind, instance, content: start..end });
            at = end;
        }
    }

    /// One record alone.
    #[must_use]
    pub fn of(kind: u16, vcpu: u32, bytes: Vec<u8>) -> Self {
        let content = 0..bytes.len();
        Self { bytes, places: vec![Place { kind, instance: vcpu as u16, content }] }
    }

    fn find(&self, kind: u16, vcpu: u32) -> Option<&Place> {
        self.places.iter().find(|place| place.kind == kind && u32::from(place.instance) == vcpu)
    }

    /// The content of a vCPU's record of this type; `None` where it has none.
    #[must_use]
    pub fn get(&self, kind: u16, vcpu: u32) -> Option<&[u8]> {
        self.bytes.get(self.find(kind, vcpu)?.content.clone())
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, kind: u16, vcpu: u32) -> Option<&mut [u8]> {
        let content = self.find(kind, vcpu)?.content.clone();
        self.bytes.get_mut(content)
    }

    /// What is to be put in place again: the header, all vCPUs' registers, for Xen stops those that it gets none of, and
    /// of `vcpu` alone the records of these types.
    #[must_use]
    pub fn part(&self, vcpu: u32, kinds: &[u16]) -> Vec<u8> {
        let mut part = Vec::new();
        for place in &self.places {
            let mine = u32::from(place.instance) == vcpu && kinds.contains(&place.kind);
            if mine || matches!(place.kind, kind::HEADER | kind::CPU) {
                let start = place.content.start.saturating_sub(DESCRIPTOR);
                part.extend_from_slice(self.bytes.get(start..place.content.end).unwrap_or_default());
            }
        }
        part.extend_from_slice(&[0; DESCRIPTOR]);
        part
    }
}

#[cfg(test)]
impl Records {
    /// All of it, as it was parsed.
    pub fn part_all(&self) -> Vec<u8> {
        self.bytes.clone()
    }
}

/// Number `value` of a record; 0 past its end, as Xen extends shorter records.
#[must_use]
pub fn word(record: &[u8], at: usize) -> u64 {
    number(record, at).map_or(0, u64::from_le_bytes)
}

/// The same of 32 bits.
#[must_use]
pub fn half(record: &[u8], at: usize) -> u32 {
    number(record, at).map_or(0, u32::from_le_bytes)
}

/// Sets bytes of a record; what lies past its end is dropped.
pub fn put(record: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = record.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
        place.copy_from_slice(bytes);
    }
}

#[cfg(test)]
#[allow(missing_docs, reason = "helpers of other tests too")]
pub mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Records in a row, with their end.
    pub fn row(records: &[(u16, u16, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, instance, content) in records {
            bytes.extend_from_slice(&kind.to_le_bytes());
            bytes.extend_from_slice(&instance.to_le_bytes());
            bytes.extend_from_slice(&(content.len() as u32).to_le_bytes());
            bytes.extend_from_slice(content);
        }
        bytes.extend_from_slice(&[0; DESCRIPTOR]);
        bytes
    }

    #[test]
    fn a_part_has_all_vcpus_and_one_vcpus_records() {
        let all = [
            (kind::HEADER, 0, vec![1]),
            (kind::CPU, 0, vec![2]),
            (kind::CPU, 1, vec![3]),
            (kind::LAPIC_REGS, 0, vec![4]),
            (kind::LAPIC_REGS, 1, vec![5]),
            (kind::MTRR, 1, vec![6]),
        ];
        let mut records = Records::parse(row(&all)).unwrap();
        records.get_mut(kind::CPU, 1).unwrap()[0] = 9;
        let part = records.part(1, &[kind::LAPIC_REGS]);
        let mut wanted = all.to_vec();
        wanted[2].2 = vec![9];
        wanted.remove(5);
        wanted.remove(3);
        assert_eq!(part, row(&wanted));
        assert_eq!(Records::parse(part).unwrap().get(kind::LAPIC_REGS, 0), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_records_or_refused(bytes: Vec<u8>, vcpu: u32) {
            if let Ok(records) = Records::parse(bytes) {
                let part = records.part(vcpu, &[kind::XSAVE]);
                prop_assert!(Records::parse(part).is_ok());
            }
        }

        #[test]
        fn records_are_found_by_type_and_vcpu(contents in proptest::collection::vec(any::<Vec<u8>>(), 1..6)) {
            let all: Vec<_> = contents.into_iter().enumerate().map(|(n, content)| (kind::CPU, n as u16, content)).collect();
            let records = Records::parse(row(&all)).unwrap();
            for (kind, vcpu, content) in &all {
                prop_assert_eq!(records.get(*kind, u32::from(*vcpu)).unwrap(), &content[..]);
            }
        }
    }
}
