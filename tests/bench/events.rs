//! What events cost: a held one's round trip at the file, the hub's rate over a real mount, the guest's slowdown, and
//! many open files. Ratios are to baselines measured in the same run.
//!
//! `cargo bench --bench events`; needs root and /dev/fuse.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bare;
mod crowd;
mod figures;
mod hub;
mod machine;
mod mock;
#[path = "../faults/mounted.rs"]
mod mounted;
mod trip;

pub use figures::{share, told};

fn main() {
    let mut kept = trip::run();
    kept &= hub::run();
    kept &= machine::run();
    kept &= crowd::run();
    figures::end(kept);
}
