//! `format=binary`: a record of an event file as a fixed little-endian struct, version 1.
//!
//! | offset | bytes | field | value |
//! |---|---|---|---|
//! | 0 | 2 | version | 1 |
//! | 2 | 2 | bytes | 72, the length of a record |
//! | 4 | 1 | kind | 1 to 15, in the order of [`EventKind::ALL`]; 255: records were lost |
//! | 5 | 1 | dir | 0 none, 1 to, 2 from |
//! | 6 | 1 | flags | bit 0 held, 1 ptwalk, 2 `data` is an error code, 3 `a` is there, 4 `b` is there |
//! | 7 | 1 | code | by kind |
//! | 8 | 8 | seq | lost: the first number |
//! | 16 | 8 | t | ns; lost: the last number |
//! | 24 | 4 | vcpu | |
//! | 28 | 4 | view | 0: the default view |
//! | 32 | 8 | rip | |
//! | 40 | 8 | cr3 | |
//! | 48 | 4 | index | by kind |
//! | 52 | 4 | data | by kind |
//! | 56 | 8 | a | by kind |
//! | 64 | 8 | b | by kind |
//!
//! docs/formats.md has the fields by kind. A field that a kind doesn't have is zero, and so every record has one form.

use vmtree_api::events::{DescriptorTable, Detail, Event, EventKind, InterruptType, Move, Way};
use vmtree_api::{Access, Error, Gpa, Gva, Result, VcpuId, ViewId};

use super::invalid;
use crate::events::record::{Item, Record};

mod reader;

pub use self::reader::Reader;

const OP: &str = "read binary record";

/// The version of the struct, its first field.
pub const VERSION: u16 = 1;

/// The length of a record in bytes.
pub const RECORD_BYTES: usize = 72;

/// `kind` of a record that tells of lost ones.
const LOST: u8 = 255;

const HELD: u8 = 1;
const PAGE_WALK: u8 = 2;
const ERROR: u8 = 4;
const HAS_A: u8 = 8;
const HAS_B: u8 = 16;
/// `index` of an interrupt whose vector is not known.
const NO_VECTOR: u32 = u32::MAX;
const TO: u8 = 1;
const FROM: u8 = 2;

const TYPES: [InterruptType; 6] = [
    InterruptType::External,
    InterruptType::Nmi,
    InterruptType::HardwareException,
    InterruptType::SoftwareInterrupt,
    InterruptType::PrivilegedSoftwareException,
    InterruptType::SoftwareException,
];
const TABLES: [DescriptorTable; 4] =
    [DescriptorTable::Gdtr, DescriptorTable::Idtr, DescriptorTable::Ldtr, DescriptorTable::Tr];
const RIGHTS: [Access; 3] = [Access::READ, Access::WRITE, Access::EXECUTE];

/// The struct's fields behind version and length, in order.
#[derive(Clone, Copy, Default)]
struct Fields {
    kind: u8,
    dir: u8,
    flags: u8,
    code: u8,
    seq: u64,
    time: u64,
    vcpu: u32,
    view: u32,
    rip: u64,
    cr3: u64,
    index: u32,
    data: u32,
    a: u64,
    b: u64,
}

/// An item as a record.
#[must_use]
pub fn encode(item: &Item) -> [u8; RECORD_BYTES] {
    match item {
        Item::Lost { first, last } => {
            Fields { kind: LOST, seq: *first, time: *last, ..Fields::default() }.to_bytes()
        }
        Item::Event { record, held } => {
            let event = &record.event;
            let mut fields = Fields {
                kind: event.kind as u8 + 1,
                flags: if *held { HELD } else { 0 },
                seq: record.seq,
                time: record.time,
                vcpu: event.vcpu.0,
                view: event.view.0,
                rip: event.rip,
                cr3: event.cr3,
                ..Fields::default()
            };
            fields.put(&event.detail);
            fields.to_bytes()
        }
    }
}

impl Fields {
    fn put(&mut self, detail: &Detail) {
        match *detail {
            Detail::Control(access) => self.put_move(access),
            Detail::Debug { reg, access } => {
                self.index = reg.into();
                self.put_move(access);
            }
            Detail::Msr { index, access } => {
                self.index = index;
                self.put_move(access);
            }
            Detail::Interrupt { vector, kind, error, cr2 } => {
                self.index = vector.map_or(NO_VECTOR, u32::from);
                self.code = TYPES.iter().position(|known| *known == kind).unwrap_or_default() as u8;
                self.data = self.flagged(ERROR, error);
                self.b = self.flagged(HAS_B, cr2);
            }
            Detail::Breakpoint { gpa, len } => {
                self.code = len;
                self.a = self.flagged(HAS_A, gpa.map(|gpa| gpa.0));
            }
            Detail::SingleStep | Detail::GuestRequest => {}
            Detail::Slat { access, gpa, gva, page_walk } => {
                let bits = RIGHTS.iter().enumerate().filter(|(_, right)| access.contains(**right));
                self.code = bits.map(|(bit, _)| 1 << bit).sum();
                self.flags |= if page_walk { PAGE_WALK } else { 0 };
                self.a = self.flagged(HAS_A, Some(gpa.0));
                self.b = self.flagged(HAS_B, gva.map(|gva| gva.0));
            }
            Detail::Cpuid { leaf, subleaf } => (self.index, self.data) = (leaf, subleaf),
            Detail::Io { port, bytes, value } => {
                self.dir = if value.is_some() { TO } else { FROM };
                (self.index, self.code, self.data) = (port.into(), bytes, value.unwrap_or(0));
            }
            Detail::Descriptor { table, way } => {
                self.code = TABLES.iter().position(|known| *known == table).unwrap_or_default() as u8;
                self.dir = if way == Way::From { FROM } else { TO };
            }
        }
    }

    fn put_move(&mut self, access: Move) {
        match access {
            Move::To { old, new } => (self.dir, self.a, self.b) = (TO, old, new),
            Move::From { value } => (self.dir, self.a) = (FROM, value),
        }
    }

    /// `value`, its flag set if it is there.
    fn flagged<T: Default>(&mut self, flag: u8, value: Option<T>) -> T {
        if value.is_some() {
            self.flags |= flag;
        }
        value.unwrap_or_default()
    }

    fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut out = [0; RECORD_BYTES];
        out[0..2].copy_from_slice(&VERSION.to_le_bytes());
        out[2..4].copy_from_slice(&(RECORD_BYTES as u16).to_le_bytes());
        out[4..8].copy_from_slice(&[self.kind, self.dir, self.flags, self.code]);
        out[8..16].copy_from_slice(&self.seq.to_le_bytes());
        out[16..24].copy_from_slice(&self.time.to_le_bytes());
        out[24..28].copy_from_slice(&self.vcpu.to_le_bytes());
        out[28..32].copy_from_slice(&self.view.to_le_bytes());
        out[32..40].copy_from_slice(&self.rip.to_le_bytes());
        out[40..48].copy_from_slice(&self.cr3.to_le_bytes());
        out[48..52].copy_from_slice(&self.index.to_le_bytes());
        out[52..56].copy_from_slice(&self.data.to_le_bytes());
        out[56..64].copy_from_slice(&self.a.to_le_bytes());
        out[64..72].copy_from_slice(&self.b.to_le_bytes());
        out
    }

    fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Self {
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
        Self {
            kind: bytes[4],
            dir: bytes[5],
            flags: bytes[6],
            code: bytes[7],
            seq: long(8),
            time: long(16),
            vcpu: word(24),
            view: word(28),
            rip: long(32),
            cr3: long(40),
            index: word(48),
            data: word(52),
            a: long(56),
            b: long(64),
        }
    }

    fn item(&self) -> Option<Item> {
        if self.kind == LOST {
            return Some(Item::Lost { first: self.seq, last: self.time });
        }
        let kind = *EventKind::ALL.get(usize::from(self.kind).checked_sub(1)?)?;
        let event = Event {
            vcpu: VcpuId(self.vcpu),
            view: ViewId(self.view),
            kind,
            rip: self.rip,
            cr3: self.cr3,
            detail: self.detail(kind)?,
        };
        let record = Record { seq: self.seq, time: self.time, event };
        Some(Item::Event { record, held: self.has(HELD) })
    }

    /// What the fields say of an event of this kind; `None` where they say nothing.
    fn detail(&self, kind: EventKind) -> Option<Detail> {
        let small = u8::try_from(self.index).ok();
        Some(match kind {
            EventKind::Cr0 | EventKind::Cr3 | EventKind::Cr4 | EventKind::Cr8 | EventKind::Xcr0 => {
                Detail::Control(self.access()?)
            }
            EventKind::Dr => Detail::Debug { reg: small?, access: self.access()? },
            EventKind::Msr => Detail::Msr { index: self.index, access: self.access()? },
            EventKind::Interrupt => Detail::Interrupt {
                vector: if self.index == NO_VECTOR { None } else { Some(small?) },
                kind: *TYPES.get(usize::from(self.code))?,
                error: self.has(ERROR).then_some(self.data),
                cr2: self.has(HAS_B).then_some(self.b),
            },
            EventKind::Breakpoint => {
                Detail::Breakpoint { gpa: self.has(HAS_A).then_some(Gpa(self.a)), len: self.code }
            }
            EventKind::SingleStep => Detail::SingleStep,
            EventKind::Slat => Detail::Slat {
                access: self.rights(),
                gpa: Gpa(self.a),
                gva: self.has(HAS_B).then_some(Gva(self.b)),
                page_walk: self.has(PAGE_WALK),
            },
            EventKind::Cpuid => Detail::Cpuid { leaf: self.index, subleaf: self.data },
            EventKind::Io => Detail::Io {
                port: u16::try_from(self.index).ok()?,
                bytes: self.code,
                value: (self.way()? == Way::To).then_some(self.data),
            },
            EventKind::Descriptor => {
                Detail::Descriptor { table: *TABLES.get(usize::from(self.code))?, way: self.way()? }
            }
            EventKind::GuestRequest => Detail::GuestRequest,
        })
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn way(&self) -> Option<Way> {
        match self.dir {
            TO => Some(Way::To),
            FROM => Some(Way::From),
            _ => None,
        }
    }

    fn access(&self) -> Option<Move> {
        Some(match self.way()? {
            Way::To => Move::To { old: self.a, new: self.b },
            _ => Move::From { value: self.a },
        })
    }

    fn rights(&self) -> Access {
        let set = RIGHTS.iter().enumerate().filter(|(bit, _)| self.code >> bit & 1 != 0);
        set.fold(Access::NONE, |all, (_, right)| all.union(*right))
    }
}

/// The item of a record.
///
/// # Errors
/// [`vmtree_api::ErrorKind::Invalid`] for another length, version or kind, and for anything that no record holds: numbers
/// without a meaning, or a field that its kind doesn't have and that is not zero.
pub fn decode(bytes: &[u8]) -> Result<Item> {
    let Ok(bytes) = <&[u8; RECORD_BYTES]>::try_from(bytes) else {
        return Err(refuse(format!("it has {} bytes, not {RECORD_BYTES}", bytes.len())));
    };
    let (version, length) =
        (u16::from_le_bytes([bytes[0], bytes[1]]), u16::from_le_bytes([bytes[2], bytes[3]]));
    if version != VERSION {
        return Err(refuse(format!("version {version}, not {VERSION}")));
    }
    if usize::from(length) != RECORD_BYTES {
        return Err(refuse(format!("its header counts {length} bytes, not {RECORD_BYTES}")));
    }
    let fields = Fields::from_bytes(bytes);
    let kinds = EventKind::ALL.len();
    if fields.kind != LOST && !(1..=kinds).contains(&usize::from(fields.kind)) {
        return Err(refuse(format!("kind {} is not 1 to {kinds} nor {LOST}", fields.kind)));
    }
    // Every record has one form: what doesn't come back as it was holds something that no record holds.
    match fields.item().filter(|item| encode(item) == *bytes) {
        Some(item) => Ok(item),
        None => Err(refuse(format!("its fields fit no event of kind {}", fields.kind))),
    }
}

fn refuse(why: String) -> Error {
    invalid(OP, format!("{why}: read from the start of a file opened with format=binary, by whole records"))
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
