//! What is injected: `vcpu/N/inject`, and `inject` in an answer.

use vmtree_api::events::Inject;
use vmtree_api::{Error, ErrorKind, Gva, Result};

use super::{invalid, lines, number_of, quoted, setting};

const OP: &str = "read injection";
const FORM: &str = "write pf ADDR err=CODE, exception VECTOR [err=CODE], interrupt VECTOR or nmi";

/// The last vector of exceptions (Intel SDM volume 3A, 6.2: 0 to 31 are the architecture's).
const LAST_EXCEPTION: u8 = 31;

/// Reads the one injection of `vcpu/N/inject`.
///
/// # Errors
/// [`ErrorKind::Invalid`] for anything but exactly one injection on one line, [`ErrorKind::OutOfRange`] for an address of
/// more than 64 bits, an error code of more than 32, or a vector past the last.
pub fn parse(text: &str) -> Result<Inject> {
    let mut lines = lines(text);
    let words = lines.next().unwrap_or_default();
    if let Some(word) = lines.next().and_then(|words| words.first().copied()) {
        return Err(invalid(OP, format!("{} starts a second injection: write one at a time", quoted(word))));
    }
    parse_words(&words)
}

/// Reads an injection from the words of a line.
pub(super) fn parse_words(words: &[&str]) -> Result<Inject> {
    let Some((what, rest)) = words.split_first() else {
        return Err(invalid(OP, format!("there is nothing to inject: {FORM}")));
    };
    let (inject, rest) = match (*what, rest) {
        ("pf", [address, code, rest @ ..]) => {
            let address = Gva(number_of(OP, "ADDR", address, 64)?);
            (Inject::PageFault { address, error: error_of(code)? }, rest)
        }
        ("pf", _) => {
            return Err(invalid(OP, "pf needs an address and an error code: write pf ADDR err=CODE".into()));
        }
        ("exception", [vector, rest @ ..]) => {
            let error = rest.first().map(|code| error_of(code)).transpose()?;
            (Inject::Exception { vector: exception_of(vector)?, error }, rest.get(1..).unwrap_or_default())
        }
        ("interrupt", [vector, rest @ ..]) => {
            (Inject::Interrupt { vector: number_of(OP, "VECTOR", vector, 8)? as u8 }, rest)
        }
        ("exception" | "interrupt", []) => {
            return Err(invalid(OP, format!("{what} needs a vector: write {what} VECTOR")));
        }
        ("nmi", rest) => (Inject::Nmi, rest),
        _ => return Err(invalid(OP, format!("{} can't be injected: {FORM}", quoted(what)))),
    };
    match rest.first() {
        Some(word) => Err(invalid(OP, format!("{} is one word too many: {FORM}", quoted(word)))),
        None => Ok(inject),
    }
}

fn error_of(word: &str) -> Result<u32> {
    match setting(OP, word, "err=CODE")? {
        ("err", code) => Ok(number_of(OP, "err", code, 32)? as u32),
        _ => Err(invalid(OP, format!("{} is no error code: write err=CODE", quoted(word)))),
    }
}

fn exception_of(word: &str) -> Result<u8> {
    match number_of(OP, "VECTOR", word, 8)? as u8 {
        vector @ 0..=LAST_EXCEPTION => Ok(vector),
        _ => {
            let why = format!(
                "VECTOR: {}: exceptions have 0 to {LAST_EXCEPTION}; write interrupt for others",
                quoted(word)
            );
            Err(Error::new(ErrorKind::OutOfRange, OP, why))
        }
    }
}

/// An injection as [`parse`] reads it, without a newline.
#[must_use]
pub fn print(inject: &Inject) -> String {
    match inject {
        Inject::PageFault { address, error } => format!("pf {:#018x} err={error:#x}", address.0),
        Inject::Exception { vector, error: Some(error) } => format!("exception {vector} err={error:#x}"),
        Inject::Exception { vector, error: None } => format!("exception {vector}"),
        Inject::Interrupt { vector } => format!("interrupt {vector}"),
        Inject::Nmi => "nmi".into(),
    }
}

#[cfg(test)]
#[path = "inject_tests.rs"]
pub(super) mod tests;
