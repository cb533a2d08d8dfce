//! What the plugin in QEMU costs: to a guest that it sits beside, to one that is watched, and for a held event's round trip.
//!
//! `cargo build --release -p vmtree-qemu-plugin && cargo bench --bench agent`, with QEMU 11 first in PATH
//! (tests/labs/qemu/versions.sh); needs root and /dev/fuse.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod boots;
mod figures;
#[path = "../labs/qemu/lab.rs"]
mod lab;
#[allow(dead_code, reason = "the part that is of the built-in machine alone")]
mod machine;
mod watched;

pub use figures::{share, told};

fn main() {
    let plugin = match lab::plugin(env!("CARGO_BIN_EXE_vmtree")) {
        Ok(plugin) => plugin,
        Err(why) => return println!("skipped: {why}"),
    };
    let mut kept = watched::trips(&plugin);
    kept &= boots::run(&plugin);
    watched::pages(&plugin);
    figures::end(kept);
}
