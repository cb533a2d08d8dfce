//! `views/NAME/access`: SLAT permissions.

use std::fmt::Write as _;
use std::ops::Range;

use vmtree_api::{Access, Gfn, Result};

use super::{address_of, frame_of, invalid, lines, quoted};

const OP: &str = "read access text";
const FORM: &str = "write START-END rwx [deny], as 0x1000-0x3000 r-x, or reset";

/// A change of a view's permissions.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AccessChange {
    /// Every frame gets all rights back. Rules of open event files stay.
    Reset,
    /// These frames get these rights.
    Set {
        /// The frames, end excluded.
        frames: Range<Gfn>,
        /// What the guest may do without a violation; all rights take the rule away.
        access: Access,
        /// Whether it is a wall: a violation doesn't take place.
        deny: bool,
    },
}

/// A line of `views/NAME/access`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AccessLine {
    /// The frames, end excluded.
    pub frames: Range<Gfn>,
    /// What the guest may do there.
    pub access: Access,
    /// Whether it is a wall.
    pub deny: bool,
    /// Whether it is the rule of an open event file.
    pub event: bool,
}

/// Reads lines of `START-END RIGHTS [deny]` and `reset`, in the order written; at least one.
///
/// # Errors
/// [`vmtree_api::ErrorKind::Invalid`] for bad text, a range that is empty or not of whole pages, and rights with write but
/// without read; `OutOfRange` for an address of more than 64 bits.
pub fn parse(text: &str) -> Result<Vec<AccessChange>> {
    let changes: Vec<_> = lines(text).map(|words| change_of(&words)).collect::<Result<_>>()?;
    match changes.is_empty() {
        true => Err(invalid(OP, format!("nothing is changed: {FORM}"))),
        false => Ok(changes),
    }
}

fn change_of(words: &[&str]) -> Result<AccessChange> {
    let (change, rest) = match words {
        ["reset", rest @ ..] => (AccessChange::Reset, rest),
        [range, rights, "deny", rest @ ..] => (set(range, rights, true)?, rest),
        [range, rights, rest @ ..] => (set(range, rights, false)?, rest),
        [range, ..] => {
            frames_of(range)?;
            return Err(invalid(OP, format!("{} has no rights behind it: {FORM}", quoted(range))));
        }
        [] => return Err(invalid(OP, format!("nothing is changed: {FORM}"))),
    };
    match rest.first() {
        Some(word) => Err(invalid(OP, format!("{} is one word too many: {FORM}", quoted(word)))),
        None => Ok(change),
    }
}

fn set(range: &str, rights: &str, deny: bool) -> Result<AccessChange> {
    Ok(AccessChange::Set { frames: frames_of(range)?, access: rights_of(rights)?, deny })
}

/// Reads `START-END`: whole pages, the end excluded.
fn frames_of(text: &str) -> Result<Range<Gfn>> {
    let Some((start, end)) = text.split_once('-') else {
        return Err(invalid(OP, format!("{} is no range: {FORM}", quoted(text))));
    };
    let (start, end) = (frame_of(OP, "START", start)?, frame_of(OP, "END", end)?);
    if start >= end {
        return Err(invalid(OP, format!("{} is empty: END is excluded and lies above START", quoted(text))));
    }
    Ok(start..end)
}

/// Reads rights as `ls` writes them.
fn rights_of(text: &str) -> Result<Access> {
    let letters = [('r', Access::READ), ('w', Access::WRITE), ('x', Access::EXECUTE)];
    let mut access = Access::NONE;
    let fits = text.len() == letters.len()
        && text.chars().zip(letters).all(|(char, (letter, right))| {
            if char == letter {
                access = access.union(right);
            }
            char == letter || char == '-'
        });
    if !fits {
        let form = "write rwx with '-' for each that is not there, as r-x";
        return Err(invalid(OP, format!("{} are no rights: {form}", quoted(text))));
    }
    if access.contains(Access::WRITE) && !access.contains(Access::READ) {
        // Intel SDM volume 3C, 28.3.3.1: bit 1 without bit 0 is a misconfiguration. AMD's tables have no read bit at all.
        let why = format!("{} is write without read, which no hardware has: add r, or drop w", quoted(text));
        return Err(invalid(OP, why));
    }
    Ok(access)
}

/// The lines as the file shows them; [`parse`] reads them, but for the mark of event files, which is a comment.
#[must_use]
pub fn print(lines: &[AccessLine]) -> String {
    let mut text = String::new();
    for AccessLine { frames, access, deny, event } in lines {
        let deny = if *deny { " deny" } else { "" };
        let event = if *event { " # event" } else { "" };
        let (start, end) = (address_of(frames.start), address_of(frames.end));
        // Writing to a String never fails.
        let _ = writeln!(text, "{start:#018x}-{end:#018x} {access}{deny}{event}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vmtree_api::ErrorKind;

    fn line(frames: Range<u64>, access: Access, deny: bool, event: bool) -> AccessLine {
        AccessLine { frames: Gfn(frames.start)..Gfn(frames.end), access, deny, event }
    }

    fn change(line: &AccessLine) -> AccessChange {
        AccessChange::Set { frames: line.frames.clone(), access: line.access, deny: line.deny }
    }

    #[test]
    fn reads_the_contract_s_forms() {
        let rx = Access::READ.union(Access::EXECUTE);
        let text = "0x1000-0x3000 r-x # a trap\n0x5000-0x6000 r-- deny\nreset\n";
        let lines = [line(1..3, rx, false, false), line(5..6, Access::READ, true, false)];
        assert_eq!(parse(text).unwrap(), [change(&lines[0]), change(&lines[1]), AccessChange::Reset]);
    }

    #[test]
    fn shows_ranges_as_the_map_does() {
        let rx = Access::ALL.without(Access::WRITE);
        let lines = [line(1..3, rx, false, true), line(5..6, Access::NONE, true, false)];
        let text = "\
0x0000000000001000-0x0000000000003000 r-x # event
0x0000000000005000-0x0000000000006000 --- deny
";
        assert_eq!(print(&lines), text);
        assert_eq!(print(&[]), "");
    }

    #[test]
    fn refuses_the_rest_by_name() {
        for (text, named) in [
            ("", "nothing is changed"),
            ("# reset", "nothing is changed"),
            ("Reset", "'Reset' is no range"),
            ("reset now", "'now'"),
            ("0x1000-0x2000", "no rights"),
            ("0x1000 0x2000 r--", "'0x1000' is no range"),
            ("0x1000-0x2000 rw", "'rw' are no rights"),
            ("0x1000-0x2000 xwr", "'xwr'"),
            ("0x1000-0x2000 rwxs", "'rwxs'"),
            ("0x1000-0x2000 -w- deny", "no hardware has"),
            ("0x1000-0x2000 -wx", "no hardware has"),
            ("0x1000-0x2000 r-- allow", "'allow'"),
            ("0x1000-0x2000 r-- deny deny", "'deny'"),
            ("0x1001-0x2000 r--", "START: '0x1001' is inside a page: write 0x1000"),
            ("0x1000-0x1fff r--", "END: '0x1fff'"),
            ("0x2000-0x2000 r--", "is empty"),
            ("0x2000-0x1000 r--", "is empty"),
            ("-0x1000 r--", "START: ''"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.kind() == ErrorKind::Invalid && error.why().contains(named), "{text}: {error}");
        }
        let far = parse("reset\n0-0x10000000000000000 r--").unwrap_err();
        assert_eq!(far.kind(), ErrorKind::OutOfRange);
    }

    fn any_line() -> impl Strategy<Value = AccessLine> {
        let rights = prop::sample::select(vec!["rwx", "rw-", "r-x", "r--", "--x", "---"]);
        (0..1u64 << 51, 1..1u64 << 51, rights, any::<(bool, bool)>()).prop_map(
            |(start, len, rights, (deny, event))| {
                line(start..start + len, rights_of(rights).unwrap(), deny, event)
            },
        )
    }

    proptest! {
        #[test]
        fn lines_read_back(lines in prop::collection::vec(any_line(), 1..20)) {
            let expected: Vec<_> = lines.iter().map(change).collect();
            prop_assert_eq!(parse(&print(&lines)).unwrap(), expected);
        }

        #[test]
        fn never_panics(text: String, near in "((0x)?[0-9a-f]{0,2}000-(0x)?[0-9a-f]{0,2}000 [rwx-]{2,4}( deny)?[ \n#]){0,4}") {
            for text in [&text, &near] {
                match parse(text) {
                    Ok(changes) => prop_assert!(!changes.is_empty()),
                    Err(error) => prop_assert!(!error.to_string().contains(char::is_control)),
                }
            }
        }
    }
}
