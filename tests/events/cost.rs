//! What readers and names cost the daemon: processor time and memory.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Job;
use crate::common::{lab, wait_until};
use crate::readers::waiting_in_reads;

fn cat(path: &Path) -> Job {
    let mut cat = Command::new("cat");
    Job(cat.arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

#[test]
fn many_parked_readers_cost_little_and_die_at_once() {
    let Some(lab) = lab("many parked readers") else { return };
    let daemon = lab.mount();
    // The guest makes none of these.
    let path = lab.mountpoint.join("events/guest_request");
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let open = limit.current.map_or(10_000, |most| most.saturating_sub(300).min(10_000));
    let mut readers: Vec<_> = (0..100).map(|_| cat(&path)).collect();
    // Files that are only open cost nothing but memory.
    let files: Vec<_> = (0..open).map(|_| File::open(&path).unwrap()).collect();
    let pids: Vec<u32> = readers.iter().map(Job::pid).collect();
    wait_until("all wait", || waiting_in_reads(&pids) == 100);
    let (before, begun) = (cpu(daemon), Instant::now());
    std::thread::sleep(Duration::from_secs(3));
    let share = (cpu(daemon) - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    println!("100 parked readers, {open} open files: {:.2} % of a core", share * 100.0);
    // 1 % where it is optimized and has the core to itself.
    assert!(share < if cfg!(debug_assertions) { 0.08 } else { 0.02 }, "{share}");
    let mut worst = Duration::ZERO;
    for reader in readers.iter_mut().take(20) {
        reader.signal("KILL");
        worst = worst.max(reader.ends_within(Duration::from_secs(3)));
    }
    println!("killed readers ended within {} ms", worst.as_millis());
    assert!(worst < Duration::from_millis(600), "{worst:?}");
    drop((readers, files));
    lab.umount();
}

/// The time that the daemon's threads have used which look after those who wait.
fn cpu(daemon: u32) -> Duration {
    let mut ticks = 0;
    for task in fs::read_dir(format!("/proc/{daemon}/task")).unwrap() {
        let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
        let Some((head, rest)) = stat.rsplit_once(") ") else { continue };
        if ["vmtree-signals", "vmtree-fresh", "vmtree-events"].iter().any(|name| head.ends_with(name)) {
            let fields: Vec<&str> = rest.split(' ').collect();
            ticks += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        }
    }
    // 100 a second (USER_HZ).
    Duration::from_millis(ticks * 10)
}

/// The memory of a process in KiB.
fn rss(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn names_that_nobody_uses_cost_no_memory() {
    let Some(lab) = lab("memory of names") else { return };
    let daemon = lab.mount();
    let mut names = 0_u32..;
    let mut round = |count: usize| {
        for index in names.by_ref().take(count) {
            fs::metadata(lab.mountpoint.join(format!("events/msr,index={index:#x}"))).unwrap();
        }
        // They are forgotten once two looks have found them unused.
        std::thread::sleep(Duration::from_secs(4));
        rss(daemon)
    };
    // Tables keep the room for the most names that were ever known at once: the first round makes it.
    let rounds = [30_000, 10_000, 10_000, 10_000, 10_000].map(&mut round);
    println!("{rounds:?} KiB");
    assert!(rounds[4] < rounds[1] + (2 << 10), "{rounds:?} KiB");
    lab.umount();
}
