//! The negative control of the conformance suite's checks of events, views and injection: over a real mount of a driver
//! that lies, each check fails at the lie that it is there for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod driver;
#[path = "../faults/mounted.rs"]
mod mounted;

use std::time::Duration;

use driver::{Liar, Lie};
use mounted::{Mounted, possible};
use vmtree_conformance::{Vm, checks, run};

/// Each lie, and the checks that must not believe it.
const LIES: &[(Lie, &[&str])] = &[
    (
        Lie::Deaf,
        &[
            "events-modes",
            "events-wait",
            "events-whole-records",
            "events-stats",
            "held-registers",
            "events-blocking",
        ],
    ),
    (Lie::Drops, &["events-all", "events-singlestep"]),
    (Lie::WrongRip, &["events-observe"]),
    (Lie::WrongVcpu, &["events-filters"]),
    (Lie::WrongDetail, &["events-interrupt-types", "slat-page-walk", "slat-watch"]),
    (
        Lie::Continues,
        &[
            "control-deny",
            "control-value",
            "control-cpuid-value",
            "control-set",
            "control-inject",
            "slat-write-answers",
            "slat-read-answers",
            "slat-execute-answers",
            "views-by-answer",
            "inject-by-answer",
        ],
    ),
    (Lie::Denies, &["control-continue", "control-step"]),
    (Lie::Steals, &["watched-progress"]),
    (
        Lie::NeverHolds,
        &[
            "control-refusals",
            "held-stale",
            "held-timeout",
            "held-close",
            "held-reverse",
            "held-two-kinds",
            "held-others-run",
            "held-pause",
        ],
    ),
    (Lie::NoRules, &["slat-rules", "slat-walls", "slat-refusals", "slat-large-rule", "views-rules"]),
    (Lie::NoSwitch, &["views-made", "views-switch", "views-copy", "views-page-walk", "views-hidden-hook"]),
    (Lie::NoRemap, &["views-frame", "views-mem", "views-refusals"]),
    (
        Lie::NoInjection,
        &["inject-exceptions", "inject-interrupt", "inject-pending", "inject-nmi", "inject-refusals"],
    ),
];

/// What no driver can be wrong about: names, formats and who may open is the mount's own doing.
const OF_THE_MOUNT: &[&str] = &["events-formats", "events-listed", "events-names", "held-overlap"];

/// The parts of the suite that plain files can't lie to.
const PARTS: &[&str] = &["events-", "control-", "held-", "watched-", "slat-", "views-", "inject-"];

#[test]
fn every_check_of_events_has_its_lie() {
    let mut lied: Vec<&str> = LIES.iter().flat_map(|(_, names)| names.iter().copied()).collect();
    lied.extend(OF_THE_MOUNT);
    lied.sort_unstable();
    let mut wanted: Vec<&str> = checks().map(|check| check.name).collect();
    wanted.retain(|name| PARTS.iter().any(|part| name.starts_with(part)));
    wanted.sort_unstable();
    assert_eq!(lied, wanted);
}

#[test]
fn no_check_of_events_believes_its_lie() {
    if !possible("no_check_of_events_believes_its_lie") {
        return;
    }
    let mut believed = Vec::new();
    for (lie, names) in LIES {
        let mounted = Mounted::with(Liar::new(*lie), "threads=4,reply_timeout=2");
        let vm = Vm::open(mounted.path()).and_then(Vm::booted).unwrap().patient(Duration::from_secs(1));
        for name in *names {
            let mut told = String::new();
            let summary = run(&vm, &[(*name).to_owned()], &mut |line| told = line.to_owned());
            println!("{lie:?}: {told}");
            if summary.failed != 1 {
                believed.push(format!("{lie:?}: {told}"));
            }
        }
        // An open file keeps the session alive.
        drop(vm);
        mounted.end();
    }
    assert!(believed.is_empty(), "these believed the lie: {believed:#?}");
}
