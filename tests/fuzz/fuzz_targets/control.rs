//! Control files and ranges: what parses has a value inside its limits; comments and blanks change nothing.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmtree::text::{control, map, text_of};
use vmtree_fuzz::checked;

fuzz_target!(|data: &[u8]| {
    let Some(text) = checked(text_of(data)) else { return };
    let padded = format!("# a comment\n \t{text}\n# another");
    if let Some(verbs) = checked(control::parse_ctl(text)) {
        assert!(!verbs.is_empty());
        assert_eq!(control::parse_ctl(&padded).ok(), Some(verbs));
    }
    if let Some(count) = checked(control::parse_step(text)) {
        assert!((1..=1 << 63).contains(&count));
        assert_eq!(control::parse_step(&padded).ok(), Some(count));
        assert_eq!(control::parse_step(&format!("step {count:#x}")).ok(), Some(count));
    }
    if let Some(range) = checked(map::parse_range(text)) {
        assert!(range.start < range.end);
        assert_eq!(map::parse_range(&format!("{:#x}-{:#x}", range.start, range.end)).ok(), Some(range));
    }
});
