//! Records of `format=binary`, by the layout that docs/formats.md gives: written anew, so that two readers must agree.

use crate::event::{Fields, Record, number};

const BYTES: usize = 72;
const KINDS: [&str; 15] = [
    "cr0",
    "cr3",
    "cr4",
    "cr8",
    "xcr0",
    "dr",
    "msr",
    "interrupt",
    "breakpoint",
    "singlestep",
    "slat",
    "cpuid",
    "io",
    "descriptor",
    "guest_request",
];
const TYPES: [&str; 6] = ["external", "nmi", "hwexc", "swint", "privsw", "swexc"];
const TABLES: [&str; 4] = ["gdtr", "idtr", "ldtr", "tr"];

struct Raw<'a>(&'a [u8]);

impl Raw<'_> {
    fn number(&self, at: usize, len: usize) -> u64 {
        let bytes = self.0.get(at..at + len).unwrap_or_default();
        bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }

    fn flag(&self, bit: u32) -> bool {
        self.number(6, 1) >> bit & 1 == 1
    }

    fn one_of(&self, names: &[&str], what: &str) -> Result<String, String> {
        let code = self.number(7, 1);
        let name = names.get(code as usize).ok_or_else(|| format!("{code} is no {what}"))?;
        Ok((*name).to_owned())
    }

    /// What follows the common fields of a kind.
    fn detail(&self, kind: &str) -> Result<Fields, String> {
        let (index, data) = (number(self.number(48, 4)), number(self.number(52, 4)));
        let (a, b) = (number(self.number(56, 8)), number(self.number(64, 8)));
        let mut fields: Fields = match kind {
            "dr" => vec![("reg", index)],
            "msr" => vec![("index", index)],
            "interrupt" => vec![("vector", index), ("type", self.one_of(&TYPES, "type of interruption")?)],
            "breakpoint" => vec![("len", number(self.number(7, 1)))],
            "slat" => {
                vec![("access", self.letters()), ("gpa", a.clone()), ("ptwalk", number(self.flag(1).into()))]
            }
            "cpuid" => vec![("leaf", index), ("subleaf", data.clone())],
            "io" => vec![("port", index), ("bytes", number(self.number(7, 1)))],
            "descriptor" => vec![("table", self.one_of(&TABLES, "table")?)],
            _ => Vec::new(),
        };
        match (kind, self.number(5, 1)) {
            ("io" | "descriptor", 1) => fields.push(("dir", "to".to_owned())),
            ("io" | "descriptor", 2) => fields.push(("dir", "from".to_owned())),
            (_, 1) => fields.extend([("dir", "to".to_owned()), ("old", a.clone()), ("new", b.clone())]),
            (_, 2) => fields.extend([("dir", "from".to_owned()), ("value", a.clone())]),
            _ => {}
        }
        let there = [
            ("err", kind == "interrupt" && self.flag(2), &data),
            ("cr2", kind == "interrupt" && self.flag(4), &b),
            ("gva", kind == "slat" && self.flag(4), &b),
            ("gpa", kind == "breakpoint" && self.flag(3), &a),
            ("value", kind == "io" && self.number(5, 1) == 1, &data),
        ];
        let there = there.into_iter().filter(|(_, there, _)| *there);
        fields.extend(there.map(|(name, _, value)| (name, value.clone())));
        Ok(fields)
    }

    fn letters(&self) -> String {
        let rights = [(0, 'r'), (1, 'w'), (2, 'x')];
        rights.iter().filter(|(bit, _)| self.number(7, 1) >> bit & 1 == 1).map(|(_, letter)| letter).collect()
    }

    fn record(&self) -> Result<Record, String> {
        same!(
            [self.number(0, 2), self.number(2, 2)],
            [1, BYTES as u64],
            "version and length of a binary record"
        );
        let (kind, seq, time) = (self.number(4, 1), number(self.number(8, 8)), number(self.number(16, 8)));
        if kind == 255 {
            return Record::of_fields(&[("kind", "lost".to_owned()), ("first", seq), ("last", time)]);
        }
        let name = kind.checked_sub(1).and_then(|kind| KINDS.get(kind as usize));
        let name = *name.ok_or_else(|| format!("{kind} is no kind, in a binary record"))?;
        let mut fields: Fields = vec![("seq", seq), ("t", time), ("kind", name.to_owned())];
        fields.extend(
            [("vcpu", 24, 4), ("view", 28, 4), ("rip", 32, 8), ("cr3", 40, 8)]
                .map(|(name, at, len)| (name, number(self.number(at, len)))),
        );
        fields.push(("held", number(self.flag(0).into())));
        fields.extend(self.detail(name)?);
        Record::of_fields(&fields)
    }
}

/// All records of one read.
pub fn records(bytes: &[u8]) -> Result<Vec<Record>, String> {
    same!(bytes.len() % BYTES, 0, "bytes behind the last whole record of a read");
    bytes.chunks(BYTES).map(|bytes| Raw(bytes).record()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_by_its_layout() {
        let mut raw = [0; BYTES];
        for (at, bytes) in [
            (0, &[1, 0, 72, 0, 2, 1, 1, 0, 7][..]),
            (16, &[9]),
            (24, &[3]),
            (33, &[0x10]),
            (56, &[5]),
            (64, &[6]),
        ] {
            raw[at..at + bytes.len()].copy_from_slice(bytes);
        }
        let text = "seq=7 t=9 vcpu=3 view=0 kind=cr3 held=1 rip=0x1000 cr3=0x0 dir=to old=0x5 new=0x6";
        assert_eq!(records(&raw).unwrap(), [Record::of_text(text).unwrap()]);
        assert!(records(&raw[1..]).is_err());
        raw[4] = 16;
        assert!(records(&raw).is_err());
    }
}
