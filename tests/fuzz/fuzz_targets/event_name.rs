//! Names below events/: what parses has a canonical name that parses to the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmtree::text::{event_name, name};
use vmtree_fuzz::checked;

const VCPUS: u32 = 4;

fuzz_target!(|text: &str| {
    let Some(Some((filter, format))) = checked(event_name::parse(text, VCPUS)) else { return };
    let canonical = event_name::print(&filter, format);
    assert!(filter.overlaps(&filter));
    assert_eq!(name::split(&canonical).map(|params| params.canonical()).ok(), Some(canonical.clone()));
    assert_eq!(event_name::parse(&canonical, VCPUS).ok(), Some(Some((filter, format))));
});
