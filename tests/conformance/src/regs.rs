//! The registers' text and struct, as they are documented in docs/formats.md.

use std::collections::BTreeMap;

use crate::map::hex;

/// The registers of the struct that have 8 bytes, before the segments.
const WORDS: &[&str] = &[
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15", "rip", "rflags", "cr0", "cr2", "cr3", "cr4", "cr8", "xcr0", "dr0", "dr1", "dr2", "dr3", "dr6",
    "dr7", "efer",
];
const SEGMENTS: &[&str] = &["es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"];
const TABLES: &[&str] = &["gdtr", "idtr"];
const LATER_WORDS: &[&str] = &[
    "star",
    "lstar",
    "cstar",
    "fmask",
    "kernel_gs_base",
    "sysenter_cs",
    "sysenter_esp",
    "sysenter_eip",
    "pat",
    "apic_base",
    "tsc",
    "tsc_aux",
];
/// The length of the struct.
const RAW_BYTES: usize = 536;
/// The length of its header.
const RAW_HEADER: usize = 32;

/// The values of some registers, by their name in `regs/all`: `rax`, `cs.sel`, `gdtr.base`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Regs(BTreeMap<String, u64>);

/// `key=value`.
fn setting(word: &str) -> Result<(&str, u64), String> {
    let (key, value) = word.split_once('=').ok_or_else(|| format!("'{word}' is no NAME=VALUE"))?;
    Ok((key, hex(value).map_err(|why| format!("{key}: {why}"))?))
}

impl Regs {
    /// The text of `regs/all`.
    pub fn parse_all(text: &str) -> Result<Self, String> {
        let mut regs = Self::default();
        for word in text.split_whitespace() {
            let (key, value) = setting(word)?;
            ensure!(regs.0.insert(key.to_owned(), value).is_none(), "regs/all has {key} twice");
        }
        Ok(regs)
    }

    /// The text of `regs/NAME`.
    pub fn parse_one(name: &str, text: &str) -> Result<Self, String> {
        let text = text.strip_suffix('\n').ok_or_else(|| format!("regs/{name} does not end its line"))?;
        if !text.contains('=') {
            return Ok(Self([(name.to_owned(), hex(text)?)].into()));
        }
        let fields =
            text.split(' ').map(|word| setting(word).map(|(key, value)| (format!("{name}.{key}"), value)));
        Ok(Self(fields.collect::<Result<_, _>>()?))
    }

    /// The struct of `regs/raw`.
    pub fn parse_raw(raw: &[u8]) -> Result<Self, String> {
        same!(raw.len(), RAW_BYTES, "the length of regs/raw");
        let mut reader = Raw { raw, at: RAW_HEADER, index: 0, regs: Self::default() };
        same!(raw.get(..8), Some(&b"VMTREGS\0"[..]), "the magic of regs/raw");
        same!([reader.number(8, 2), reader.number(10, 2)], [1, 1], "version and arch of regs/raw");
        same!(reader.number(12, 4), RAW_BYTES as u64, "the byte count of regs/raw");
        WORDS.iter().for_each(|name| reader.word(name));
        for name in SEGMENTS {
            reader.wide(name, &[("sel", 0, 2), ("attr", 2, 2), ("limit", 4, 4), ("base", 8, 8)]);
        }
        TABLES.iter().for_each(|name| reader.wide(name, &[("limit", 0, 2), ("base", 8, 8)]));
        LATER_WORDS.iter().for_each(|name| reader.word(name));
        same!(reader.at, RAW_BYTES, "the end of the last register of regs/raw");
        Ok(reader.regs)
    }

    /// A register, or a field of one.
    pub fn get(&self, name: &str) -> Result<u64, String> {
        self.find(name).ok_or_else(|| format!("regs/all has no {name}"))
    }

    /// The same, where it is offered.
    pub fn find(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// The names without their fields, in no special order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.0.keys().map(|key| key.split('.').next().unwrap_or(key).to_owned()).collect();
        names.dedup();
        names
    }

    /// The part that belongs to one register.
    pub fn part(&self, name: &str) -> Self {
        let of = |key: &String| key.split('.').next() == Some(name);
        Self(self.0.iter().filter(|(key, _)| of(key)).map(|(key, value)| (key.clone(), *value)).collect())
    }

    /// All but one register.
    pub fn without(mut self, name: &str) -> Self {
        self.0.retain(|key, _| key != name);
        self
    }

    /// What differs between two sets, in words.
    pub fn differences(&self, other: &Self) -> String {
        let keys: std::collections::BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        let shown = |value: Option<u64>| value.map_or("absent".to_owned(), |value| format!("{value:#x}"));
        let lines = keys.into_iter().filter(|key| self.0.get(*key) != other.0.get(*key));
        let lines = lines.map(|key| format!("{key} {} / {}", shown(self.find(key)), shown(other.find(key))));
        lines.collect::<Vec<_>>().join(", ")
    }
}

/// A walk over the struct.
struct Raw<'a> {
    raw: &'a [u8],
    at: usize,
    index: usize,
    regs: Regs,
}

impl Raw<'_> {
    fn number(&self, at: usize, bytes: usize) -> u64 {
        let bytes = self.raw.get(at..at + bytes).unwrap_or_default();
        bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Whether the register at hand is there, by its bit.
    fn present(&mut self) -> bool {
        let bit = self.index;
        self.index += 1;
        self.number(16 + bit / 64 * 8, 8) >> (bit % 64) & 1 != 0
    }

    fn word(&mut self, name: &str) {
        if self.present() {
            self.regs.0.insert(name.to_owned(), self.number(self.at, 8));
        }
        self.at += 8;
    }

    fn wide(&mut self, name: &str, fields: &[(&str, usize, usize)]) {
        if self.present() {
            for (field, offset, bytes) in fields {
                self.regs.0.insert(format!("{name}.{field}"), self.number(self.at + offset, *bytes));
            }
        }
        self.at += 16;
    }
}

#[cfg(test)]
impl Regs {
    /// The struct of `regs/raw` of these.
    pub fn to_raw(&self) -> Vec<u8> {
        let (mut raw, mut present) = (vec![0; RAW_HEADER], 0_u128);
        let mut wide = |raw: &mut Vec<u8>, name: &str, fields: &[(&str, usize)]| {
            for (field, bytes) in fields {
                let key = if field.is_empty() { name.to_owned() } else { format!("{name}.{field}") };
                raw.extend(&self.find(&key).unwrap_or(0).to_le_bytes()[..*bytes]);
            }
            let there = !self.part(name).0.is_empty();
            present = present >> 1 | u128::from(there) << 127;
        };
        WORDS.iter().for_each(|name| wide(&mut raw, name, &[("", 8)]));
        SEGMENTS
            .iter()
            .for_each(|name| wide(&mut raw, name, &[("sel", 2), ("attr", 2), ("limit", 4), ("base", 8)]));
        TABLES.iter().for_each(|name| wide(&mut raw, name, &[("limit", 2), ("", 6), ("base", 8)]));
        LATER_WORDS.iter().for_each(|name| wide(&mut raw, name, &[("", 8)]));
        let registers = WORDS.len() + SEGMENTS.len() + TABLES.len() + LATER_WORDS.len();
        raw[..8].copy_from_slice(b"VMTREGS\0");
        raw[8] = 1;
        raw[10] = 1;
        raw[12..16].copy_from_slice(&(RAW_BYTES as u32).to_le_bytes());
        raw[16..32].copy_from_slice(&(present >> (128 - registers)).to_le_bytes());
        raw
    }
}
