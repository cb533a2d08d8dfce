//! `mem.map`, and address ranges.

use std::fmt::Write as _;
use std::ops::Range;

use vmtree_api::{MemoryMap, RegionKind, Result};

use super::{invalid, number_of, quoted};

const OP: &str = "read range";

/// The map as `mem.map` shows it: a line a region, `START-END KIND [ram/NAME@OFFSET]`, the end excluded.
/// Blanks, control characters and backslashes in NAME are written as octal escapes, as /proc/self/mounts does.
#[must_use]
pub fn show(map: &MemoryMap) -> String {
    let mut text = String::new();
    for region in map.regions() {
        let kind = match region.kind {
            RegionKind::Ram => "ram",
            RegionKind::Rom => "rom",
            RegionKind::Mmio => "mmio",
        };
        // Writing to a String never fails.
        let _ = write!(text, "{:#018x}-{:#018x} {kind}", region.start.0, region.end.0);
        if let Some(block) = &region.block {
            let _ = write!(text, " ram/{}@{:#x}", escape(&block.name), block.offset);
        }
        text.push('\n');
    }
    text
}

fn escape(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for char in name.chars() {
        if char.is_whitespace() || char.is_control() || char == '\\' {
            for byte in char.encode_utf8(&mut [0; 4]).bytes() {
                let _ = write!(text, "\\{byte:03o}");
            }
        } else {
            text.push(char);
        }
    }
    text
}

/// Reads `START-END`, the end excluded; START lies before END.
///
/// # Errors
/// [`vmtree_api::ErrorKind::Invalid`] for another form or an empty range, `OutOfRange` for more than 64 bits.
pub fn parse_range(text: &str) -> Result<Range<u64>> {
    let Some((start, end)) = text.split_once('-') else {
        return Err(invalid(OP, format!("{} is no range: write START-END, as 0x1000-0x3000", quoted(text))));
    };
    let start = number_of(OP, "START", start, 64)?;
    let end = number_of(OP, "END", end, 64)?;
    if start >= end {
        return Err(invalid(OP, format!("{} is empty: END is excluded and lies above START", quoted(text))));
    }
    Ok(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vmtree_api::{BlockRef, ErrorKind, Gpa, Region};

    #[test]
    fn shows_a_line_a_region() {
        let block = |name: &str, offset| Some(BlockRef { name: name.into(), offset });
        let region = |start, end, kind, block| Region { start: Gpa(start), end: Gpa(end), kind, block };
        let map = MemoryMap::new(
            1,
            vec![
                region(0, 0xa0000, RegionKind::Ram, block("pc.ram", 0)),
                region(0xf0000, 0x100000, RegionKind::Rom, None),
                region(0xfec0_0000, 0xfec0_1000, RegionKind::Mmio, None),
                region(1 << 32, 2 << 32, RegionKind::Ram, block("a b\\\n", 0xc000_0000)),
            ],
        );
        let text = "\
0x0000000000000000-0x00000000000a0000 ram ram/pc.ram@0x0
0x00000000000f0000-0x0000000000100000 rom
0x00000000fec00000-0x00000000fec01000 mmio
0x0000000100000000-0x0000000200000000 ram ram/a\\040b\\134\\012@0xc0000000
";
        assert_eq!(show(&map), text);
        assert_eq!(show(&MemoryMap::default()), "");
    }

    #[test]
    fn refuses_what_is_no_range() {
        for text in ["", "0x1000", "-", "1-", "-1", "2-1", "1-1", "1-2-3", "0x1 - 0x2"] {
            assert_eq!(parse_range(text).unwrap_err().kind(), ErrorKind::Invalid, "{text}");
        }
        assert_eq!(parse_range("0-0x10000000000000000").unwrap_err().kind(), ErrorKind::OutOfRange);
    }

    proptest! {
        #[test]
        fn a_shown_map_reads_back(
            starts in prop::collection::btree_set(any::<u64>(), 0..20), name in ".*", offset: u64,
        ) {
            let starts: Vec<u64> = starts.into_iter().collect();
            let block = Some(BlockRef { name: name.as_str().into(), offset });
            let regions = starts.windows(2).map(|pair| {
                Region { start: Gpa(pair[0]), end: Gpa(pair[1]), kind: RegionKind::Ram, block: block.clone() }
            });
            let text = show(&MemoryMap::new(0, regions.collect()));
            prop_assert_eq!(text.lines().count(), starts.len().saturating_sub(1));
            for (line, pair) in text.lines().zip(starts.windows(2)) {
                let words: Vec<_> = line.split_whitespace().collect();
                prop_assert_eq!(words.len(), 3);
                prop_assert_eq!(parse_range(words[0]).unwrap(), pair[0]..pair[1]);
                let suffix = format!("@{offset:#x}");
                prop_assert!(words[2].starts_with("ram/") && words[2].ends_with(&suffix));
            }
        }

        #[test]
        fn a_range_never_panics(text: String, near in "[0-9x-]{0,24}") {
            let _ = parse_range(&text);
            let _ = parse_range(&near);
        }
    }
}
