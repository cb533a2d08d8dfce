//! Figures and their promises, as all benchmarks of events tell them.

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

/// Says whether all was kept; a broken promise is an exit code where `VMTREE_BENCH_STRICT` is set.
pub fn end(kept: bool) {
    println!("\n{}", if kept { "every promise kept" } else { "A PROMISE IS BROKEN" });
    if std::env::var_os("VMTREE_BENCH_STRICT").is_some() && !kept {
        std::process::exit(1);
    }
}
