//! `regs/NAME` and `regs/all`: registers as text.

use vmtree_api::x86::{Segment, Table};
use vmtree_api::{Arch, Error, ErrorKind, RegDef, RegId, RegOffer, RegShape, RegValue, RegisterSet, Result};

use super::{invalid, number_of, quoted, setting, words};

const OP: &str = "read register text";

/// A part of a register that is set by itself: its name (none for a word) and its width in bits.
type Field = (&'static str, u32);

/// The fields of a register in the order they are shown.
fn fields(shape: RegShape) -> &'static [Field] {
    match shape {
        RegShape::Word(_) => &[],
        RegShape::Segment => &[("sel", 16), ("base", 64), ("limit", 32), ("attr", 16)],
        RegShape::Table => &[("base", 64), ("limit", 16)],
    }
}

fn load(value: RegValue, field: &str) -> u64 {
    match (value, field) {
        (RegValue::Word(word), _) => word,
        (RegValue::Segment(segment), "sel") => segment.selector.into(),
        (RegValue::Segment(segment), "base") => segment.base,
        (RegValue::Segment(segment), "limit") => segment.limit.into(),
        (RegValue::Segment(segment), _) => segment.attr.into(),
        (RegValue::Table(table), "base") => table.base,
        (RegValue::Table(table), _) => table.limit.into(),
    }
}

/// Sets a field to a number that its width was checked for.
fn store(value: &mut RegValue, field: &str, number: u64) {
    match (value, field) {
        (RegValue::Word(word), _) => *word = number,
        (RegValue::Segment(segment), "sel") => segment.selector = number as u16,
        (RegValue::Segment(segment), "base") => segment.base = number,
        (RegValue::Segment(segment), "limit") => segment.limit = number as u32,
        (RegValue::Segment(segment), _) => segment.attr = number as u16,
        (RegValue::Table(table), "base") => table.base = number,
        (RegValue::Table(table), _) => table.limit = number as u16,
    }
}

/// Appends a number in all its digits. By hand: `regs/all` has a hundred of them, and formatting them would take longer
/// than the whole round trip of a read.
fn push_hex(text: &mut String, number: u64, bits: u32) {
    text.push_str("0x");
    for digit in (0..bits.div_ceil(4)).rev() {
        let digit = (number >> (4 * digit) & 0xf) as u32;
        text.push(char::from_digit(digit, 16).unwrap_or('?'));
    }
}

/// Appends the fields of `value` on one line, the name `of` and a dot before each unless it is empty.
fn push_fields(text: &mut String, value: RegValue, shape: RegShape, of: &str) {
    for (index, (name, bits)) in fields(shape).iter().enumerate() {
        if index > 0 {
            text.push(' ');
        }
        if !of.is_empty() {
            text.push_str(of);
            text.push('.');
        }
        text.push_str(name);
        text.push('=');
        push_hex(text, load(value, name), *bits);
    }
}

/// A register's value as its own file shows it, without a newline.
#[must_use]
pub fn show(value: RegValue, shape: RegShape) -> String {
    let mut text = String::new();
    match shape {
        RegShape::Word(bits) => push_hex(&mut text, load(value, ""), bits),
        RegShape::Segment | RegShape::Table => push_fields(&mut text, value, shape, ""),
    }
    text
}

/// How many bytes [`show`] gives for any value of a register of this shape.
#[must_use]
pub fn shown_len(shape: RegShape) -> usize {
    let value = match shape {
        RegShape::Word(_) => RegValue::Word(0),
        RegShape::Segment => RegValue::Segment(Segment::default()),
        RegShape::Table => RegValue::Table(Table::default()),
    };
    show(value, shape).len()
}

/// The offered registers as `regs/all` shows them: a line a register, in the order of `offers`.
#[must_use]
pub fn show_all(arch: Arch, offers: &[RegOffer], set: &RegisterSet) -> String {
    // A line of a segment has 76 characters, most others have 23.
    let mut text = String::with_capacity(40 * offers.len());
    for offer in offers {
        let (Some(def), Some(value)) = (arch.registers().get(usize::from(offer.id.0)), set.get(offer.id))
        else {
            continue;
        };
        push_setting(&mut text, def, value);
        text.push('\n');
    }
    text
}

/// Appends what sets a register in `regs/all`.
fn push_setting(text: &mut String, def: &RegDef, value: RegValue) {
    match def.shape {
        RegShape::Word(bits) => {
            text.push_str(def.name);
            text.push('=');
            push_hex(text, load(value, ""), bits);
        }
        RegShape::Segment | RegShape::Table => push_fields(text, value, def.shape, def.name),
    }
}

/// Registers as [`parse_whole`] reads them, with commas between, on one line.
#[must_use]
pub fn show_whole(arch: Arch, registers: &[(RegId, RegValue)]) -> String {
    let mut text = String::new();
    for (id, value) in registers {
        let Some(def) = arch.registers().get(usize::from(id.0)) else { continue };
        if !text.is_empty() {
            text.push(' ');
        }
        push_setting(&mut text, def, *value);
    }
    text.replace(' ', ",")
}

/// How to write a register in `regs/all` (with `prefix`) or in its own file, for errors.
fn form(shape: RegShape, prefix: &str) -> String {
    let name = |(name, _): &Field| format!("{prefix}{name}=");
    fields(shape).iter().map(name).collect::<Vec<_>>().join(", ")
}

/// Applies the text of one register's own file: one number for a word; some or all fields for a segment or table,
/// the others keep their values.
///
/// # Errors
/// [`ErrorKind::Invalid`] for bad text, [`ErrorKind::OutOfRange`] for a number too large,
/// [`ErrorKind::NotFound`] for an id outside the table. `set` is unchanged then.
pub fn apply(text: &str, id: RegId, set: &mut RegisterSet) -> Result<()> {
    let (Some(def), Some(mut value)) = (set.arch().registers().get(usize::from(id.0)), set.get(id)) else {
        return Err(Error::new(ErrorKind::NotFound, OP, format!("there is no register number {}", id.0)));
    };
    let (name, shape) = (def.name, def.shape);
    let mut done: Vec<&str> = Vec::new();
    for word in words(text) {
        let (key, number) = match shape {
            RegShape::Word(_) => ("", word),
            RegShape::Segment | RegShape::Table => setting(OP, word, &form(shape, ""))?,
        };
        let (field, bits) = field_of(name, shape, key, "")?;
        let place = if field.is_empty() { name.to_owned() } else { format!("{name}.{field}") };
        if done.contains(&field) {
            let why = format!("{} sets {place} a second time: write one value", quoted(word));
            return Err(invalid(OP, why));
        }
        done.push(field);
        store(&mut value, field, number_of(OP, &place, number, bits)?);
    }
    if done.is_empty() {
        let how = if fields(shape).is_empty() { "a number".to_owned() } else { form(shape, "") };
        return Err(invalid(OP, format!("there is no value for {name}: write {how}")));
    }
    set.set(id, value)
}

/// The field called `key` of a register; a word's only field has no name.
fn field_of(name: &str, shape: RegShape, key: &str, prefix: &str) -> Result<Field> {
    match shape {
        RegShape::Word(bits) if key.is_empty() => return Ok(("", bits)),
        RegShape::Word(_) => {
            let why = format!("{name} has no field {}: write {name}=VALUE", quoted(key));
            return Err(invalid(OP, why));
        }
        RegShape::Segment | RegShape::Table => {}
    }
    let found = fields(shape).iter().find(|(field, _)| *field == key);
    found.copied().ok_or_else(|| {
        let what = if key.is_empty() {
            "no value of its own".to_owned()
        } else {
            format!("no field {}", quoted(key))
        };
        invalid(OP, format!("{name} has {what}: write {}", form(shape, prefix)))
    })
}

/// Applies the text of `regs/all`: `name=value` for words, `name.field=value` for segments and tables; what is not
/// named keeps its value. Returns the registers named, whether or not their values differ, in table order.
///
/// # Errors
/// [`ErrorKind::Invalid`] for bad text, an unknown name, the same place twice or no setting at all;
/// [`ErrorKind::OutOfRange`] for a number too large. `set` is unchanged then.
pub fn apply_all(text: &str, set: &mut RegisterSet) -> Result<Vec<RegId>> {
    let mut ids: Vec<RegId> = apply_fields(text, set)?.into_iter().map(|(id, _)| id).collect();
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// Reads registers that are set whole, in the form of `regs/all`: a segment or table needs all of its fields, because
/// there is no value that the others could keep. In table order.
///
/// # Errors
/// As [`apply_all`]; [`ErrorKind::Invalid`] also for a field that is not named.
pub fn parse_whole(text: &str, arch: Arch) -> Result<Vec<(RegId, RegValue)>> {
    let mut set = RegisterSet::new(arch);
    let mut named = apply_fields(text, &mut set)?;
    named.sort_unstable();
    let mut whole = Vec::new();
    for of_one in named.chunk_by(|a, b| a.0 == b.0) {
        let id = of_one[0].0;
        let (Some(def), Some(value)) = (arch.registers().get(usize::from(id.0)), set.get(id)) else {
            continue;
        };
        if of_one.len() < fields(def.shape).len() {
            let all = form(def.shape, &format!("{}.", def.name));
            return Err(invalid(OP, format!("{} is set whole here: name {all} together", def.name)));
        }
        whole.push((id, value));
    }
    Ok(whole)
}

/// Applies settings in the form of `regs/all`, and returns what was named: each field of a register, an empty one for a
/// word.
fn apply_fields(text: &str, set: &mut RegisterSet) -> Result<Vec<(RegId, &'static str)>> {
    let arch = set.arch();
    let mut next = set.clone();
    let mut done: Vec<(RegId, &'static str)> = Vec::new();
    for word in words(text) {
        let (place, number) = setting(OP, word, "NAME=VALUE without blanks, as rax=1 or cs.base=0")?;
        let (name, key) = match place.split_once('.') {
            Some((name, key)) if !key.is_empty() => (name, key),
            Some(_) => return Err(invalid(OP, format!("{} has no field after '.'", quoted(word)))),
            None => (place, ""),
        };
        let found = arch
            .register(name)
            .and_then(|id| Some((id, arch.registers().get(usize::from(id.0))?, next.get(id)?)));
        let Some((id, def, mut value)) = found else {
            let why = format!("there is no register {}: vcpu/N/regs/all shows the names", quoted(name));
            return Err(invalid(OP, why));
        };
        let (field, bits) = field_of(name, def.shape, key, &format!("{name}."))?;
        if done.contains(&(id, field)) {
            return Err(invalid(OP, format!("{} sets {place} a second time: name it once", quoted(word))));
        }
        done.push((id, field));
        store(&mut value, field, number_of(OP, place, number, bits)?);
        next.set(id, value)?;
    }
    if done.is_empty() {
        return Err(invalid(OP, "nothing is set: write NAME=VALUE, as rax=1 or cs.base=0".into()));
    }
    *set = next;
    Ok(done)
}

#[cfg(test)]
#[path = "registers_tests.rs"]
pub(super) mod tests;
