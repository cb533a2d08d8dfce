//! How fast memory and registers are as files, as ratios to named baselines measured in the same run.
//!
//! `cargo bench --bench memory`; needs root and /dev/fuse. Every subject is measured once a round, one after the
//! other, and a ratio is the median over the rounds of subject / baseline, so that a machine whose speed drifts drifts
//! under both.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bare;
mod load;
mod subject;

use load::{Cpu, Figures};
use subject::Subject;

const ROUNDS: usize = 9;

/// A promise of the documentation: figure of `subject` over the same figure of `baseline`, at least (or at most) this.
struct Promise {
    figure: fn(&Figures) -> f64,
    name: &'static str,
    subject: &'static str,
    baseline: &'static str,
    at_least: f64,
}

const PROMISES: &[Promise] = &[
    Promise {
        figure: |f| f.sequential,
        name: "sequential 1 MiB",
        subject: "ram",
        baseline: "memfd",
        at_least: 0.9,
    },
    Promise { figure: |f| f.random, name: "random 4 KiB", subject: "ram", baseline: "memfd", at_least: 0.9 },
    Promise {
        figure: |f| f.sequential,
        name: "sequential 1 MiB",
        subject: "mem",
        baseline: "bare",
        at_least: 0.95,
    },
    Promise { figure: |f| f.random, name: "random 4 KiB", subject: "mem", baseline: "bare", at_least: 0.9 },
    Promise {
        figure: |f| f.random4,
        name: "random 4 KiB, 4 readers",
        subject: "mem",
        baseline: "bare",
        at_least: 0.9,
    },
];

/// Further ratios, for comparison with other ways to read a guest.
const COMPARED: &[(&str, &str)] =
    &[("mem", "procmem"), ("mem", "readv"), ("ram", "procmem"), ("ram", "readv")];

fn main() {
    let lab = subject::Lab::new();
    let subjects = lab.subjects();
    let mut rounds: Vec<Vec<Figures>> = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push(subjects.iter().map(load::measure).collect());
    }
    table(&subjects, &rounds);
    let ratio = |figure: fn(&Figures) -> f64, subject: &str, baseline: &str| {
        let at =
            |name: &str| subjects.iter().position(|subject| subject.name == name).expect("a known subject");
        let (subject, baseline) = (at(subject), at(baseline));
        median(rounds.iter().map(|round| figure(&round[subject]) / figure(&round[baseline])).collect())
    };
    println!("\nratio                                     measured  promised");
    let mut kept = true;
    for promise in PROMISES {
        let measured = ratio(promise.figure, promise.subject, promise.baseline);
        kept &= measured >= promise.at_least;
        let what = format!("{} / {}, {}", promise.subject, promise.baseline, promise.name);
        println!("{what:<41} {measured:>8.2}  >= {:.2}", promise.at_least);
    }
    for (subject, baseline) in COMPARED {
        let what = format!("{subject} / {baseline}, sequential 1 MiB");
        println!("{what:<41} {:>8.2}", ratio(|f| f.sequential, subject, baseline));
        let what = format!("{subject} / {baseline}, random 4 KiB");
        println!("{what:<41} {:>8.2}", ratio(|f| f.random, subject, baseline));
    }
    kept &= registers(&lab);
    println!("\n{}", if kept { "every promise kept" } else { "A PROMISE IS BROKEN" });
    if std::env::var_os("VMTREE_BENCH_STRICT").is_some() && !kept {
        std::process::exit(1);
    }
}

/// A register snapshot against a bare round trip: the latency of one small read each.
fn registers(lab: &subject::Lab) -> bool {
    let Some(path) = lab.registers() else {
        println!("registers: this build has none");
        return true;
    };
    let bare = lab.subjects().into_iter().find(|subject| subject.name == "bare").expect("the baseline");
    let pairs = (0..ROUNDS).map(|_| load::latency(&path) / load::latency(&bare.path)).collect();
    let measured = median(pairs);
    println!("{:<41} {measured:>8.2}  <= 2.00", "vcpu/0/regs/all / bare, latency");
    measured <= 2.0
}

fn table(subjects: &[Subject], rounds: &[Vec<Figures>]) {
    println!("medians of {ROUNDS} rounds");
    println!(
        "{:<9} {:>10} {:>11} {:>9} {:>12} {:>12}",
        "subject", "1 MiB GB/s", "4 KiB op/s", "p50 us", "4 readers/s", "CPU ns/KiB"
    );
    for (index, subject) in subjects.iter().enumerate() {
        let of =
            |figure: fn(&Figures) -> f64| median(rounds.iter().map(|round| figure(&round[index])).collect());
        println!(
            "{:<9} {:>10.2} {:>11.0} {:>9.2} {:>12.0} {:>12.1}",
            subject.name,
            of(|f| f.sequential),
            of(|f| f.random),
            of(|f| f.median_us),
            of(|f| f.random4),
            of(|f| f.cpu_ns_per_kib),
        );
    }
    println!(
        "\nmemfd: pread of the memfd behind ram; bare: the smallest fuser file, same threads; procmem: /proc/PID/mem;"
    );
    println!(
        "readv: process_vm_readv; ram, mem: vmtree's. CPU: reader and server together, {}.",
        Cpu::SOURCE
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
