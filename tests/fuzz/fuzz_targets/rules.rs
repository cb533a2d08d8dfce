//! SLAT permissions, remaps, injections and names of views: what parses prints and parses to the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmtree::text::access::{self, AccessChange, AccessLine};
use vmtree::text::{inject, remap, text_of, view_name};
use vmtree_api::Access;
use vmtree_fuzz::checked;

fn rules(text: &str) {
    let Some(changes) = checked(access::parse(text)) else { return };
    let mut lines = Vec::new();
    for change in &changes {
        let AccessChange::Set { frames, access, deny } = change.clone() else { continue };
        assert!(frames.start < frames.end);
        assert!(access.contains(Access::READ) || !access.contains(Access::WRITE));
        lines.push(AccessLine { frames, access, deny, event: deny });
    }
    let sets: Vec<_> = changes.into_iter().filter(|change| *change != AccessChange::Reset).collect();
    if !sets.is_empty() {
        assert_eq!(access::parse(&access::print(&lines)).ok(), Some(sets));
    }
}

fuzz_target!(|data: &[u8]| {
    let Some(text) = checked(text_of(data)) else { return };
    rules(text);
    if let Some(remaps) = checked(remap::parse(text)) {
        assert_eq!(remap::parse(&remap::print(&remaps)).ok(), Some(remaps));
    }
    if let Some(what) = checked(inject::parse(text)) {
        assert_eq!(inject::parse(&inject::print(&what)).ok(), Some(what));
    }
    assert_eq!(checked(view_name::check(text)).is_some(), view_name::is_valid(text));
});
