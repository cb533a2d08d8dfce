//! Parameters in file names: the canonical name is a fixed point, whatever the order.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmtree::text::name;
use vmtree_fuzz::checked;

fuzz_target!(|text: &str| {
    let translated = checked(name::parse_translate(text));
    let Some(mut params) = checked(name::split(text)) else { return };
    let canonical = params.canonical();
    params.pairs.reverse();
    assert_eq!(params.canonical(), canonical);
    assert_eq!(name::split(&canonical).map(|params| params.canonical()).ok(), Some(canonical.clone()));
    assert_eq!(name::parse_translate(&canonical).ok(), translated);
});
