//! What many pauses must not change: the guest's own work and counts.

use std::thread::sleep;
use std::time::{Duration, Instant};

use vmtree_guest::mailbox::{Counter, Op};

use crate::{Check, Checked, Vm};

pub const CHECKS: &[Check] = &[
    Check {
        name: "pause-keeps-counts",
        needs: &["pause"],
        about: "an order's counts under many pauses are those without",
        run: keeps_counts,
    },
    Check {
        name: "pause-keeps-ticks",
        needs: &["pause"],
        about: "a paused VM loses no ticks but those of its pauses",
        run: keeps_ticks,
    },
];

/// All vCPUs work at once while we pause and resume, without a rhythm that fits the guest's.
fn keeps_counts(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let n = vm.rounds(Duration::from_millis(150))? / 8;
    let before = (0..vm.vcpus).map(|vcpu| vm.counters(vcpu)).collect::<Result<Vec<_>, _>>()?;
    let posted =
        (0..vm.vcpus).map(|vcpu| vm.begin(vcpu, Op::WriteCr8, &[n, 0])).collect::<Result<Vec<_>, _>>()?;
    for round in 0..40 {
        drop(vm.pause()?);
        sleep(Duration::from_micros(300 * (round % 7)));
    }
    for (vcpu, seq) in (0..).zip(posted) {
        vm.finish(vcpu, Op::WriteCr8, seq)?;
    }
    for (vcpu, before) in (0..).zip(&before) {
        let mut change = vm.counters(vcpu)?.since(before);
        change.retain(|counter, _| ![Counter::Heartbeat, Counter::Ticks].contains(counter));
        same!(
            change,
            [(Counter::Cr8Writes, n), (Counter::Orders, 1)].into(),
            "counts of vCPU {vcpu} under 40 pauses"
        );
    }
    Ok(())
}

/// Ticks of a vCPU in each second that the VM runs, and how long that was measured.
fn rate(vm: &Vm, vcpu: u64, run: impl FnOnce() -> Result<Duration, String>) -> Result<f64, String> {
    let before = vm.counter(vcpu, Counter::Ticks)?;
    let ran = run()?;
    Ok(vm.counter(vcpu, Counter::Ticks)?.wrapping_sub(before) as f64 / ran.as_secs_f64())
}

/// A busy host may delay one measurement and not the other, so the two are compared up to three times.
fn keeps_ticks(vm: &Vm) -> Checked {
    let mut compared = compare_ticks(vm)?;
    for _ in 0..2 {
        if compared.is_err() {
            compared = compare_ticks(vm)?;
        }
    }
    compared
}

/// Whether a vCPU gets as many ticks between pauses as without.
fn compare_ticks(vm: &Vm) -> Result<Checked, String> {
    let vcpu = vm.vcpus - 1;
    let alone = rate(vm, vcpu, || {
        let begun = Instant::now();
        sleep(Duration::from_millis(400));
        Ok(begun.elapsed())
    })?;
    let paused = rate(vm, vcpu, || {
        let mut ran = Duration::ZERO;
        for _ in 0..10 {
            let begun = Instant::now();
            sleep(Duration::from_millis(40));
            let pause = vm.pause()?;
            ran += begun.elapsed();
            sleep(Duration::from_millis(20));
            drop(pause);
        }
        Ok(ran)
    })?;
    // Loose: a busy host delays both. Lost are ticks when a pause costs the timer its period; caught up when the
    // guest's clock went on.
    let fits = paused > alone * 0.5 && paused < alone * 1.5;
    let told = || {
        format!("{paused:.0} ticks in each second that the VM ran between pauses, {alone:.0} without pauses")
    };
    Ok(if fits { Ok(()) } else { Err(told()) })
}
