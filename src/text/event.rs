//! Records of event files as text and as JSON, a line each. docs/formats.md lists the fields.
//!
//! What text shows in decimal is a number in JSON, `held` and `ptwalk` are booleans, all else is a string: JSON's readers
//! keep 53 bits of a number, and an address has 64.

use vmtree_api::events::{Detail, Event, InterruptType, Move};
use vmtree_api::{Access, ViewId};

use super::view_name;
use crate::events::record::{Item, Record};

/// How a view is called; `None` for one that is gone.
pub type ViewNames<'a> = &'a dyn Fn(ViewId) -> Option<String>;

/// Appends an item as a line of `key=value` words. The default view is called `0` without asking `views`; a view without a
/// name is shown as `-`.
pub fn print_text(out: &mut Vec<u8>, item: &Item, views: ViewNames<'_>) {
    let mut line = Line { out, json: false, first: true };
    line.item(item, views);
    out.push(b'\n');
}

/// Appends an item as a line of JSON, with the same keys in the same order.
pub fn print_json(out: &mut Vec<u8>, item: &Item, views: ViewNames<'_>) {
    out.push(b'{');
    let mut line = Line { out, json: true, first: true };
    line.item(item, views);
    out.extend_from_slice(b"}\n");
}

/// The name of a type of interruption: the contract's.
#[must_use]
pub fn interrupt_type_name(kind: InterruptType) -> &'static str {
    match kind {
        InterruptType::External => "external",
        InterruptType::Nmi => "nmi",
        InterruptType::HardwareException => "hwexc",
        InterruptType::SoftwareInterrupt => "swint",
        InterruptType::PrivilegedSoftwareException => "privsw",
        InterruptType::SoftwareException => "swexc",
    }
}

/// A line under way. Written by hand, byte by byte: formatting would take several times as long, and there can be hundreds of
/// thousands of lines a second.
struct Line<'a> {
    out: &'a mut Vec<u8>,
    json: bool,
    first: bool,
}

impl Line<'_> {
    fn item(&mut self, item: &Item, views: ViewNames<'_>) {
        match item {
            Item::Event { record, held } => self.record(record, *held, views),
            Item::Lost { first, last } => {
                self.word("kind", "lost");
                self.decimal("first", *first);
                self.decimal("last", *last);
            }
        }
    }

    fn record(&mut self, record: &Record, held: bool, views: ViewNames<'_>) {
        let Event { vcpu, view, kind, rip, cr3, ref detail } = record.event;
        self.decimal("seq", record.seq);
        self.decimal("t", record.time);
        self.decimal("vcpu", vcpu.0.into());
        self.view(view, views);
        self.word("kind", kind.name());
        self.flag("held", held);
        self.hex::<16>("rip", rip);
        self.hex::<16>("cr3", cr3);
        self.detail(detail);
    }

    fn view(&mut self, view: ViewId, views: ViewNames<'_>) {
        match view {
            ViewId(0) => self.word("view", view_name::DEFAULT),
            // Only what can name a view: another name could break the line.
            view => match views(view).filter(|name| view_name::is_valid(name)) {
                Some(name) => self.word("view", &name),
                None => self.word("view", "-"),
            },
        }
    }

    fn detail(&mut self, detail: &Detail) {
        match detail {
            Detail::Control(access) => self.access(access),
            Detail::Debug { reg, access } => {
                self.decimal("reg", (*reg).into());
                self.access(access);
            }
            Detail::Msr { index, access } => {
                self.hex::<8>("index", (*index).into());
                self.access(access);
            }
            Detail::Interrupt { vector, kind, error, cr2 } => {
                if let Some(vector) = vector {
                    self.decimal("vector", (*vector).into());
                }
                self.word("type", interrupt_type_name(*kind));
                self.maybe_hex::<8>("err", error.map(u64::from));
                self.maybe_hex::<16>("cr2", *cr2);
            }
            Detail::Breakpoint { gpa, len } => {
                self.maybe_hex::<16>("gpa", gpa.map(|gpa| gpa.0));
                self.decimal("len", (*len).into());
            }
            Detail::Slat { access, gpa, gva, page_walk } => {
                self.word("access", letters(*access));
                self.hex::<16>("gpa", gpa.0);
                self.maybe_hex::<16>("gva", gva.map(|gva| gva.0));
                self.flag("ptwalk", *page_walk);
            }
            Detail::Cpuid { leaf, subleaf } => {
                self.hex::<8>("leaf", (*leaf).into());
                self.hex::<8>("subleaf", (*subleaf).into());
            }
            Detail::Io { port, bytes, value } => {
                self.word("dir", if value.is_some() { "to" } else { "from" });
                self.hex::<4>("port", (*port).into());
                self.decimal("bytes", (*bytes).into());
                self.maybe_hex::<8>("value", value.map(u64::from));
            }
            Detail::Descriptor { table, way } => {
                self.word("table", table_name(*table));
                self.word("dir", way.name());
            }
            Detail::SingleStep | Detail::GuestRequest => {}
        }
    }

    fn access(&mut self, access: &Move) {
        match access {
            Move::To { old, new } => {
                self.word("dir", "to");
                self.hex::<16>("old", *old);
                self.hex::<16>("new", *new);
            }
            Move::From { value } => {
                self.word("dir", "from");
                self.hex::<16>("value", *value);
            }
        }
    }

    fn key(&mut self, key: &str) {
        let between = if self.json { b',' } else { b' ' };
        if !std::mem::take(&mut self.first) {
            self.out.push(between);
        }
        if self.json {
            self.out.push(b'"');
            self.out.extend_from_slice(key.as_bytes());
            self.out.extend_from_slice(b"\":");
        } else {
            self.out.extend_from_slice(key.as_bytes());
            self.out.push(b'=');
        }
    }

    /// A string that needs no escape in JSON.
    fn word(&mut self, key: &str, word: &str) {
        self.key(key);
        self.quote();
        self.out.extend_from_slice(word.as_bytes());
        self.quote();
    }

    fn quote(&mut self) {
        if self.json {
            self.out.push(b'"');
        }
    }

    fn flag(&mut self, key: &str, flag: bool) {
        self.key(key);
        self.out.extend_from_slice(match (self.json, flag) {
            (false, false) => b"0",
            (false, true) => b"1",
            (true, false) => b"false",
            (true, true) => b"true",
        });
    }

    fn decimal(&mut self, key: &str, number: u64) {
        self.key(key);
        // 2^64 has 20 digits.
        let mut digits = [0; 20];
        let mut at = digits.len();
        let mut rest = number;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
            at -= 1;
            if rest == 0 {
                break;
            }
        }
        self.out.extend_from_slice(&digits[at..]);
    }

    /// A number in all of its digits.
    fn hex<const DIGITS: usize>(&mut self, key: &str, number: u64) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut digits = [0; DIGITS];
        let mut rest = number;
        for digit in digits.iter_mut().rev() {
            *digit = HEX[(rest & 0xf) as usize];
            rest >>= 4;
        }
        self.key(key);
        self.quote();
        self.out.extend_from_slice(b"0x");
        self.out.extend_from_slice(&digits);
        self.quote();
    }

    fn maybe_hex<const DIGITS: usize>(&mut self, key: &str, number: Option<u64>) {
        if let Some(number) = number {
            self.hex::<DIGITS>(key, number);
        }
    }
}

/// The name of a register that names a table or a task.
fn table_name(table: vmtree_api::events::DescriptorTable) -> &'static str {
    use vmtree_api::events::DescriptorTable as Table;
    match table {
        Table::Gdtr => "gdtr",
        Table::Idtr => "idtr",
        Table::Ldtr => "ldtr",
        Table::Tr => "tr",
    }
}

/// An access as letters alone: one letter, or `rw` for an instruction that does both.
fn letters(access: Access) -> &'static str {
    let has = |right| access.contains(right);
    match (has(Access::READ), has(Access::WRITE), has(Access::EXECUTE)) {
        (false, false, false) => "-",
        (true, false, false) => "r",
        (false, true, false) => "w",
        (true, true, false) => "rw",
        (false, false, true) => "x",
        (true, false, true) => "rx",
        (false, true, true) => "wx",
        (true, true, true) => "rwx",
    }
}

#[cfg(test)]
#[path = "event_tests.rs"]
pub(crate) mod tests;
