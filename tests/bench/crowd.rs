//! Many open event files and many parked readers: what they cost the daemon.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::machine::Machine;
use crate::told;

const FILES: usize = 10_000;
const READERS: usize = 100;

/// Resident memory of a process in KiB.
fn resident(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// CPU seconds of all threads of a process so far: the first field of /proc/PID/task/TID/schedstat, in ns
/// (Documentation/scheduler/sched-stats.rst).
fn cpu(pid: u32) -> f64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the daemon's threads");
    let of = |path: std::path::PathBuf| fs::read_to_string(path.join("schedstat")).unwrap_or_default();
    let times = threads.map(|thread| of(thread.expect("a thread").path()));
    times.filter_map(|text| text.split(' ').next()?.parse::<f64>().ok()).sum::<f64>() / 1e9
}

/// The share of a core that the daemon takes within four seconds, in percent.
fn load(daemon: u32) -> f64 {
    let before = cpu(daemon);
    std::thread::sleep(Duration::from_secs(4));
    (cpu(daemon) - before) / 4.0 * 100.0
}

pub fn run() -> bool {
    println!("\nmany open files, many parked readers");
    let machine = Machine::mount("emu:ram=64M,vcpus=1");
    let daemon = machine.daemon();
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: Some(20_000), maximum: Some(20_000) },
    )
    .expect("more open files");
    let path = machine.path("events/xcr0");
    // The ring of the kind is allocated once, whoever opens it.
    let first = File::open(&path).expect("events/xcr0");
    let (before, idle) = (resident(daemon), load(daemon));
    let files: Vec<File> = (0..FILES).map(|_| File::open(&path).expect("an event file")).collect();
    let each = (resident(daemon) - before) / FILES as f64;
    let mut kept = told("memory of an open file", each, Some(2.0), "KiB");
    drop((files, first));
    let readers: Vec<Child> = (0..READERS)
        .map(|_| Command::new("cat").arg(&path).stdout(Stdio::null()).spawn().expect("cat"))
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let parked = load(daemon);
    told("an idle daemon (the guest's timer ticks)", idle, None, "%");
    kept &= told("100 parked readers, more than that", parked - idle, Some(1.0), "%");
    for mut reader in readers {
        reader.kill().expect("kill");
        reader.wait().expect("wait");
    }
    kept
}
