//! Answers to held events: `SEQ ACTION...`.

use std::collections::BTreeSet;

use vmtree_api::events::{Detail, Event, Verdict, Way};
use vmtree_api::{Arch, Error, ErrorKind, Result, ViewId, number};

use super::{explain, inject, invalid, lines, number_of, quoted, registers, view_name};

const OP: &str = "read answer";
const ACTIONS: &str = "continue, deny, value=X, set REG=X,..., step [view=V], view=V or inject ...";

/// Finds a view by its name; the default view, `0`, need not be known to it.
pub type ViewOf<'a> = &'a dyn Fn(&str) -> Option<ViewId>;

/// Reads answers, a line each: the number of the event and what becomes of it. At least one, each event once.
///
/// # Errors
/// [`ErrorKind::Invalid`] for bad text and a view that is not there, [`ErrorKind::OutOfRange`] for a number too large.
pub fn parse(text: &str, arch: Arch, view_of: ViewOf<'_>) -> Result<Vec<(u64, Verdict)>> {
    let mut answers = Vec::new();
    let mut seen = BTreeSet::new();
    for words in lines(text) {
        let Some((word, action)) = words.split_first() else { continue };
        if word.starts_with("seq=") {
            let why = format!("{}: the number stands alone: write SEQ ACTION, as 7 continue", quoted(word));
            return Err(invalid(OP, why));
        }
        let seq = number_of(OP, "SEQ", word, 64)?;
        if !seen.insert(seq) {
            return Err(invalid(
                OP,
                format!("SEQ: {} is answered a second time: answer it once", quoted(word)),
            ));
        }
        let Some((action, rest)) = action.split_first() else {
            return Err(invalid(OP, format!("{} has no action behind it: write {ACTIONS}", quoted(word))));
        };
        answers.push((seq, verdict_of(action, rest, arch, view_of)?));
    }
    match answers.is_empty() {
        true => Err(invalid(OP, format!("there is no answer: write SEQ and {ACTIONS}"))),
        false => Ok(answers),
    }
}

fn verdict_of(action: &str, rest: &[&str], arch: Arch, view_of: ViewOf<'_>) -> Result<Verdict> {
    let (verdict, rest) = match (action, rest) {
        ("continue", rest) => (Verdict::Continue, rest),
        ("deny", rest) => (Verdict::Deny, rest),
        ("set", rest) => return set_of(rest, arch),
        ("step", []) => (Verdict::Step(None), rest),
        ("step", [word, rest @ ..]) => (Verdict::Step(Some(view(word, view_of)?)), rest),
        ("inject", rest) => return Ok(Verdict::Inject(inject::parse_words(rest)?)),
        (word, rest) if word.starts_with("view=") => (Verdict::View(view(word, view_of)?), rest),
        (word, rest) => match word.strip_prefix("value=") {
            Some(value) => (Verdict::Value(value_of(value)?), rest),
            None => return Err(invalid(OP, format!("{} is no action: write {ACTIONS}", quoted(word)))),
        },
    };
    match rest.first() {
        Some(word) => Err(invalid(OP, format!("{} is one word too many: write {ACTIONS}", quoted(word)))),
        None => Ok(verdict),
    }
}

fn view(word: &str, view_of: ViewOf<'_>) -> Result<ViewId> {
    match word.strip_prefix("view=") {
        Some(name) => view_name::find(OP, name, view_of),
        None => Err(invalid(OP, format!("{} is no view: write view=NAME", quoted(word)))),
    }
}

fn value_of(text: &str) -> Result<u128> {
    number::parse_wide(text).map_err(|error| explain(OP, "value", text, &error))
}

/// Settings as in `regs/all`, with commas or blanks between them.
fn set_of(words: &[&str], arch: Arch) -> Result<Verdict> {
    let text = words.join(" ").replace(',', " ");
    registers::parse_whole(&text, arch).map(Verdict::Set)
}

/// Whether the contract has this answer for this event, and a `value=` fits where it goes. Whether the driver has it is
/// another question.
///
/// # Errors
/// [`ErrorKind::Invalid`] with what to answer instead; [`ErrorKind::OutOfRange`] for a value wider than its place.
pub fn allowed(verdict: &Verdict, event: &Event) -> Result<()> {
    let cure = match verdict {
        Verdict::Deny => deny_cure(event),
        Verdict::Value(value) => match value_bits(event) {
            Ok(bits) => return fits(*value, bits, event),
            Err(cure) => Some(cure),
        },
        // These are for every event.
        Verdict::Continue | Verdict::Set(_) | Verdict::Step(_) | Verdict::View(_) | Verdict::Inject(_) => {
            None
        }
    };
    let Some(cure) = cure else { return Ok(()) };
    let action = verdict.action().name();
    Err(invalid(OP, format!("{} can't be answered with {action}: {cure}", what(event))))
}

/// The event in words: its kind and way.
fn what(event: &Event) -> String {
    match event.way() {
        Way::Once => event.kind.name().to_owned(),
        way => format!("{} {}", event.kind.name(), way.name()),
    }
}

/// What to answer instead of `deny`; `None` where it can be denied.
fn deny_cure(event: &Event) -> Option<&'static str> {
    match (&event.detail, event.way()) {
        (Detail::Slat { .. }, Way::Read) => Some("use value=, inject, set rip= or view="),
        (Detail::Slat { .. }, Way::Execute) => Some("use inject, set rip= or view="),
        (Detail::Slat { .. }, _) => None,
        (Detail::Descriptor { .. }, Way::From) => Some("use inject or set rip="),
        (_, Way::From) | (Detail::Cpuid { .. }, _) => Some("use value=, inject or set rip="),
        (Detail::SingleStep, _) => Some("use continue, inject or set rip="),
        _ => None,
    }
}

/// How many bits a `value=` may have; what to answer instead where there is no value.
fn value_bits(event: &Event) -> std::result::Result<u32, &'static str> {
    match (&event.detail, event.way()) {
        // A request's value is what it leaves in RAX.
        (Detail::Control(_) | Detail::Debug { .. } | Detail::Msr { .. } | Detail::GuestRequest, _) => Ok(64),
        (Detail::Slat { .. }, Way::Execute) => Err("use inject, set rip= or view="),
        (Detail::Slat { .. } | Detail::Cpuid { .. }, _) => Ok(128),
        (Detail::Io { bytes, .. }, _) => Ok(8 * u32::from(*bytes)),
        (Detail::Interrupt { .. } | Detail::Breakpoint { .. }, _) => Err("use deny, set or inject"),
        (Detail::Descriptor { .. }, Way::To) => Err("use deny, set or inject"),
        _ => Err("use continue, set or inject"),
    }
}

fn fits(value: u128, bits: u32, event: &Event) -> Result<()> {
    if value.checked_shr(bits).unwrap_or(0) == 0 {
        return Ok(());
    }
    let why = format!("value={value:#x} needs more than the {bits} bits of {}", what(event));
    Err(Error::new(ErrorKind::OutOfRange, OP, why))
}

/// An answer as [`parse`] reads it, without a newline, for clients of event files. `name_of` names a view; one without
/// a name is written as its number.
#[must_use]
pub fn print(seq: u64, verdict: &Verdict, arch: Arch, name_of: &dyn Fn(ViewId) -> Option<String>) -> String {
    let view = |view: ViewId| name_of(view).unwrap_or_else(|| view.0.to_string());
    match verdict {
        Verdict::Continue | Verdict::Deny => format!("{seq} {}", verdict.action().name()),
        Verdict::Value(value) => format!("{seq} value={value:#x}"),
        Verdict::Set(changes) => format!("{seq} set {}", registers::show_whole(arch, changes)),
        Verdict::Step(None) => format!("{seq} step"),
        Verdict::Step(Some(to)) => format!("{seq} step view={}", view(*to)),
        Verdict::View(to) => format!("{seq} view={}", view(*to)),
        Verdict::Inject(what) => format!("{seq} inject {}", inject::print(what)),
    }
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
