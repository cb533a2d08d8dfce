//! What events cost: a held one's round trip at the file, the hub's rate over a real mount, the guest's slowdown, and
//! many open files. Ratios are to baselines measured in the same run.
//!
//! `cargo bench --bench events`; needs root and /dev/fuse.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bare;
mod crowd;
mod hub;
mod machine;
mod mock;
#[path = "../faults/mounted.rs"]
mod mounted;
mod trip;

/// A figure against its promise.
pub fn told(what: &str, measured: f64, at_most: Option<f64>, unit: &str) -> bool {
    let kept = at_most.is_none_or(|most| measured <= most);
    let promise = at_most.map_or(String::new(), |most| format!("<= {most:.2}"));
    println!("{what:<58} {measured:>10.2} {unit:<4} {promise}{}", if kept { "" } else { "  BROKEN" });
    kept
}

/// The value at this share of sorted values.
pub fn share(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (values.len() as f64 * share) as usize;
    values.get(index.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

fn main() {
    let mut kept = trip::run();
    kept &= hub::run();
    kept &= machine::run();
    kept &= crowd::run();
    println!("\n{}", if kept { "every promise kept" } else { "A PROMISE IS BROKEN" });
    if std::env::var_os("VMTREE_BENCH_STRICT").is_some() && !kept {
        std::process::exit(1);
    }
}
