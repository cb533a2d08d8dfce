//! Every text format of the mount, as pure functions between text and values. docs/formats.md describes them.
//!
//! A parser either takes the whole text or changes nothing. Its error is one line that names the input and
//! the cure, whatever bytes the input held.

pub mod access;
pub mod control;
pub mod event;
pub mod event_name;
pub mod inject;
pub mod map;
pub mod name;
pub mod options;
pub mod raw;
pub mod record;
pub mod registers;
pub mod remap;
pub mod source;
pub mod verdict;
pub mod view_name;

use vmtree_api::{Error, ErrorKind, Gfn, Gpa, PAGE_SIZE, Result, number};

/// How much of an input an error repeats, in characters.
const QUOTED: usize = 48;

/// The text in a control file's bytes.
///
/// # Errors
/// [`ErrorKind::Invalid`] for bytes that are not UTF-8 or hold a NUL.
pub fn text_of(bytes: &[u8]) -> Result<&str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(invalid("read text", "control files take text: UTF-8 without NUL bytes".into())),
    }
}

/// The words of a text: what stands between blanks and newlines, comments (`#` to the end of the line) left out.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(line_words)
}

/// The words of each line that has any, for formats where the line matters.
fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line_words(line).collect::<Vec<_>>()).filter(|words| !words.is_empty())
}

fn line_words(line: &str) -> impl Iterator<Item = &str> {
    line.split('#').next().unwrap_or("").split_whitespace()
}

/// Takes `key=value` apart at the first `=`; `form` is what the error tells to write instead.
///
/// # Errors
/// [`ErrorKind::Invalid`] if there is no `=`, or nothing before it.
pub fn setting<'a>(op: &'static str, word: &'a str, form: &str) -> Result<(&'a str, &'a str)> {
    match word.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key, value)),
        Some(_) => Err(invalid(op, format!("{} has no name before '=': write {form}", quoted(word)))),
        None => Err(invalid(op, format!("{} has no '=': write {form}", quoted(word)))),
    }
}

/// Whether `key` can name an option: a lower-case letter, then lower-case letters, digits and `_`.
fn is_key(key: &str) -> bool {
    key.starts_with(|first: char| first.is_ascii_lowercase())
        && key.chars().all(|char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '_')
}

/// A number of at most `bits` bits, its error prefixed with `what`.
fn number_of(op: &'static str, what: &str, text: &str, bits: u32) -> Result<u64> {
    number::parse_bits(text, bits).map_err(|error| explain(op, what, text, &error))
}

/// A guest-physical address of a whole page, as its frame.
fn frame_of(op: &'static str, what: &str, text: &str) -> Result<Gfn> {
    let gpa = Gpa(number_of(op, what, text, 64)?);
    match gpa.page_offset() {
        0 => Ok(gpa.gfn()),
        _ => Err(invalid(
            op,
            format!("{what}: {} is inside a page: write {:#x}", quoted(text), gpa.page_base().0),
        )),
    }
}

/// The address of a frame; 2^64 for the end of the last one.
fn address_of(gfn: Gfn) -> u128 {
    u128::from(gfn.0) * u128::from(PAGE_SIZE)
}

/// The error of a number as ours: the same kind and words, but for `what`, and with `text` shown as [`quoted`] does.
fn explain(op: &'static str, what: &str, text: &str, error: &Error) -> Error {
    // A number's error is the input in quotes, then fixed words without quotes.
    let words = error.why().rsplit_once('\'').map_or(error.why(), |(_, words)| words);
    Error::new(error.kind(), op, format!("{what}: {}{words}", quoted(text)))
}

fn invalid(op: &'static str, why: String) -> Error {
    Error::new(ErrorKind::Invalid, op, why)
}

/// `text` in quotes for an error: on one line, without control characters, cut short if it is long.
fn quoted(text: &str) -> String {
    let start: String = text.chars().take(QUOTED).flat_map(shown_char).collect();
    let more = if text.chars().nth(QUOTED).is_some() { "..." } else { "" };
    format!("'{start}{more}'")
}

fn shown_char(char: char) -> impl Iterator<Item = char> {
    // escape_debug would also escape quotes and backslashes, which harm nobody.
    let plain = matches!(char, '\'' | '"' | '\\');
    let escaped = (!plain).then(|| char.escape_debug());
    plain.then_some(char).into_iter().chain(escaped.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_is_utf8_without_nul() {
        assert_eq!(text_of(b"rax=1\n").unwrap(), "rax=1\n");
        for bytes in [&b"\xff"[..], b"a\0"] {
            let error = text_of(bytes).unwrap_err();
            assert!(error.kind() == ErrorKind::Invalid && error.why().contains("control files take text"));
        }
    }

    #[test]
    fn words_leave_comments_out() {
        let found: Vec<_> = words("# all\n a=1\tb=2 # c=3\r\n\nd=4#e").collect();
        assert_eq!(found, ["a=1", "b=2", "d=4"]);
    }

    #[test]
    fn settings_have_a_name_and_a_value() {
        assert_eq!(setting("test", "a=b=c", "k=v").unwrap(), ("a", "b=c"));
        assert_eq!(setting("test", "a=", "k=v").unwrap(), ("a", ""));
        for word in ["a", "=b", ""] {
            assert!(setting("test", word, "k=v").unwrap_err().why().ends_with("write k=v"));
        }
    }

    #[test]
    fn a_long_or_dirty_input_is_quoted_on_one_short_line() {
        assert_eq!(quoted("a\nb\x1b[0m\\"), "'a\\nb\\u{1b}[0m\\'");
        let error = number_of("test", "rax", &"9".repeat(1 << 16), 64).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange);
        assert!(error.to_string().len() < 200, "{error}");
    }

    proptest! {
        #[test]
        fn no_control_character_gets_into_an_error(text in any::<String>()) {
            prop_assert!(!quoted(&text).contains(char::is_control));
            if let Err(error) = number_of("test", "rax", &text, 16) {
                prop_assert!(!error.to_string().contains(char::is_control));
            }
        }
    }
}
