//! Opening and dropping leaves nothing behind. A file of its own: other tests would open files meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../../../tests/labs/qemu/lab.rs"]
mod lab;

use std::sync::Arc;
use std::time::{Duration, Instant};

use lab::Vm;
use vmtree_api::{NoHost, Source};

/// How many descriptors, threads and mappings of guest memory this process has.
fn held() -> [usize; 3] {
    let count = |folder: &str| std::fs::read_dir(folder).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let memfds = maps.lines().filter(|line| line.contains("/memfd:")).count();
    [count("/proc/self/fd"), count("/proc/self/task"), memfds]
}

/// The same, once it has these threads and mappings: a thread that was joined is the kernel's for a moment still.
fn settled(wanted: [usize; 2]) -> [usize; 3] {
    let begun = Instant::now();
    while held()[1..] != wanted && begun.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(1));
    }
    held()
}

#[test]
fn a_hundred_opens_and_failed_opens_leave_nothing_behind() {
    if !lab::have_qemu() {
        return;
    }
    let vm = Vm::start(lab::SHARED);
    let open = |target: &str| vmtree_qemu::open(Source::new("qemu", target, Vec::new()), Arc::new(NoHost));
    let before = held();
    for _ in 0..100 {
        let driver = open(&vm.qmp()).unwrap();
        assert_eq!(settled([before[1] + 1, 1])[1..], [before[1] + 1, 1]);
        drop(driver);
        assert!(open(&format!("{}x", vm.qmp())).is_err());
    }
    assert_eq!(settled([before[1], before[2]]), before);
}
