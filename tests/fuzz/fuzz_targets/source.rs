//! SOURCE. What parses keeps its parts: written with every escape, it parses to the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmtree::text::source;
use vmtree_fuzz::checked;

fuzz_target!(|text: &str| {
    let Some(found) = checked(source::parse(text)) else { return };
    assert!(text.starts_with(&found.driver) && !found.driver.contains([':', ',']));
    // Without options the target alone says it all.
    if found.clone().finish(&[]).is_ok() {
        let target = found.target.replace('\\', "\\\\").replace(',', "\\,");
        assert_eq!(source::parse(&format!("{}:{target}", found.driver)).ok(), Some(found));
    }
});
