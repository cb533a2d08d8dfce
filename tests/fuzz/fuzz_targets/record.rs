//! Binary records: what decodes encodes to the same bytes, and prints as one line; a stream ends.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmtree::text::event;
use vmtree::text::record::{RECORD_BYTES, Reader, decode, encode};
use vmtree_fuzz::checked;

fuzz_target!(|data: &[u8]| {
    for bytes in data.chunks(RECORD_BYTES) {
        let Some(item) = checked(decode(bytes)) else { continue };
        assert_eq!(encode(&item), bytes);
        let mut text = Vec::new();
        event::print_text(&mut text, &item, &|_| None);
        event::print_json(&mut text, &item, &|_| None);
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 2);
    }
    assert_eq!(Reader::new(data).count(), data.len().div_ceil(RECORD_BYTES));
});
