//! Mount options: a line a list. What parses stays inside the documented limits, and a list is the same in pieces.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use vmtree::text::options;
use vmtree_fuzz::checked;

fuzz_target!(|text: &str| {
    let Some(found) = checked(options::parse(text.split('\n'))) else { return };
    assert!((1..=64).contains(&found.threads));
    assert!(found.mode.is_none_or(|mode| mode <= 0o777));
    assert!(!found.reply_timeout.is_zero() && found.reply_timeout <= Duration::from_secs(3600));
    assert_eq!(options::parse(text.split(['\n', ','])).ok(), Some(found));
});
