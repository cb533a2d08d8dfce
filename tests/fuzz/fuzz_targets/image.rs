//! Guest images. What parses stays inside the file and the address space, and its segments do not overlap.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmtree_emu::loader;
use vmtree_fuzz::checked;

fuzz_target!(|data: &[u8]| {
    let Some(image) = checked(loader::parse(data)) else { return };
    let mut ranges: Vec<_> = image
        .segments
        .iter()
        .map(|segment| {
            assert!(data.get(segment.file.clone()).is_some(), "outside the file: {segment:?}");
            assert!(segment.file.len() as u64 <= segment.bytes, "more in the file than in memory: {segment:?}");
            segment.gpa..segment.gpa.checked_add(segment.bytes).expect("an end in the address space")
        })
        .collect();
    assert!(ranges.iter().any(|range| range.contains(&image.entry)), "the entry lies in no segment");
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "overlapping segments: {ranges:x?}");
});
