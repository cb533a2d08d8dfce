//! `views/NAME/remap`: the frames that a view shows differently.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use vmtree_api::views::Remap;
use vmtree_api::{Gfn, Result};

use super::{address_of, frame_of, invalid, lines, quoted};

const OP: &str = "read remap text";
const FORM: &str = "write GPA copy, GPA GPA or GPA -";

/// Reads lines of `GPA copy`, `GPA GPA2` and `GPA -`; at least one, each frame once. A frame that is to be shown at its
/// own place is [`Remap::None`].
///
/// # Errors
/// [`vmtree_api::ErrorKind::Invalid`] for bad text or an address inside a page, `OutOfRange` for more than 64 bits.
pub fn parse(text: &str) -> Result<Vec<(Gfn, Remap)>> {
    let mut changes = Vec::new();
    let mut seen = BTreeSet::new();
    for words in lines(text) {
        let (from, to) = match words[..] {
            [from, to] => (from, to),
            [_, _, more, ..] => {
                return Err(invalid(OP, format!("{} is one word too many: {FORM}", quoted(more))));
            }
            _ => {
                return Err(invalid(
                    OP,
                    format!("{} says nothing of its frame: {FORM}", quoted(&words.concat())),
                ));
            }
        };
        let gfn = frame_of(OP, "GPA", from)?;
        if !seen.insert(gfn) {
            return Err(invalid(OP, format!("{} is remapped a second time: name it once", quoted(from))));
        }
        changes.push((gfn, target_of(gfn, to)?));
    }
    match changes.is_empty() {
        true => Err(invalid(OP, format!("nothing is remapped: {FORM}"))),
        false => Ok(changes),
    }
}

fn target_of(gfn: Gfn, word: &str) -> Result<Remap> {
    Ok(match word {
        "copy" => Remap::Copy,
        "-" => Remap::None,
        _ if !word.starts_with(|first: char| first.is_ascii_digit()) => {
            return Err(invalid(OP, format!("{} is no target: {FORM}", quoted(word))));
        }
        _ => match frame_of(OP, "GPA", word)? {
            other if other == gfn => Remap::None,
            other => Remap::Frame(other),
        },
    })
}

/// The remaps as [`parse`] reads them, a line each.
#[must_use]
pub fn print(remaps: &[(Gfn, Remap)]) -> String {
    let mut text = String::new();
    for (gfn, to) in remaps {
        let from = address_of(*gfn);
        // Writing to a String never fails.
        let _ = match to {
            Remap::None => writeln!(text, "{from:#018x} -"),
            Remap::Copy => writeln!(text, "{from:#018x} copy"),
            Remap::Frame(other) => writeln!(text, "{from:#018x} {:#018x}", address_of(*other)),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vmtree_api::ErrorKind;

    const FRAMES: u64 = 1 << 52;

    #[test]
    fn reads_the_contract_s_forms() {
        let changes = parse("0x7000 copy # hide it\n\n0x8000 0x9000\n 40960 -\n0xb000 0xb000").unwrap();
        let expected = [
            (Gfn(7), Remap::Copy),
            (Gfn(8), Remap::Frame(Gfn(9))),
            (Gfn(10), Remap::None),
            (Gfn(11), Remap::None),
        ];
        assert_eq!(changes, expected);
        assert_eq!(print(&changes[..1]), "0x0000000000007000 copy\n");
    }

    #[test]
    fn refuses_the_rest_by_name() {
        for (text, named) in [
            ("", "nothing is remapped"),
            ("0x7000", "'0x7000' says nothing"),
            ("0x7000 0x8000 0x9000", "'0x9000'"),
            ("0x7000 move", "'move'"),
            ("0x7001 copy", "'0x7001' is inside a page: write 0x7000"),
            ("0x7000 0x8fff", "write 0x8000"),
            ("0x7000 copy\n0x7000 -", "second time"),
            ("copy 0x7000", "GPA: 'copy'"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.kind() == ErrorKind::Invalid && error.why().contains(named), "{text}: {error}");
        }
        assert_eq!(parse("0x10000000000000000 copy").unwrap_err().kind(), ErrorKind::OutOfRange);
    }

    proptest! {
        #[test]
        fn remaps_read_back(all in prop::collection::btree_map(0..FRAMES, (0..3, 0..FRAMES), 1..20)) {
            let remaps: Vec<_> = all
                .into_iter()
                .map(|(gfn, (how, to))| match how {
                    0 => (Gfn(gfn), Remap::Copy),
                    1 if to != gfn => (Gfn(gfn), Remap::Frame(Gfn(to))),
                    _ => (Gfn(gfn), Remap::None),
                })
                .collect();
            prop_assert_eq!(parse(&print(&remaps)).unwrap(), remaps);
        }

        #[test]
        fn never_panics(text: String, near in "((0x)?[0-9a-f]{1,3}000 (copy|-|0x[0-9]000)?[ \n#]){0,4}") {
            for text in [&text, &near] {
                match parse(text) {
                    Ok(remaps) => prop_assert_eq!(parse(&print(&remaps)).unwrap(), remaps),
                    Err(error) => prop_assert!(!error.to_string().contains(char::is_control)),
                }
            }
        }
    }
}
