//! A daemon that has served thousands of requests, many of them from callers that were killed, has the threads and
//! descriptors it began with.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::process::{Command, Stdio};

use common::{lab, wait_until};

fn count(pid: u32, what: &str) -> usize {
    fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count()
}

#[test]
fn threads_and_descriptors_stay_what_they_were() {
    let Some(lab) = lab("threads_and_descriptors_stay_what_they_were") else { return };
    let daemon = lab.mount();
    let before = (count(daemon, "fd"), count(daemon, "task"));
    for round in 0..200 {
        for name in ["info", "vcpu/0/regs/all", "ram/low", "state"] {
            fs::File::open(lab.mountpoint.join(name)).unwrap();
            let name = format!("vcpu/0/translate,gva={round:#x}");
            fs::read(lab.mountpoint.join(name)).unwrap();
        }
    }
    fs::write(lab.mountpoint.join("ctl"), "pause").unwrap();
    for _ in 0..20 {
        // It would step for minutes; it is killed in the middle of it.
        let mut step = Command::new("sh")
            .args(["-c", "echo step 1000000000000 > vcpu/0/ctl"])
            .current_dir(&lab.mountpoint)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        step.kill().unwrap();
        step.wait().unwrap();
    }
    // Workers without work go after 5 seconds.
    wait_until("the daemon is as it was", || (count(daemon, "fd"), count(daemon, "task")) == before);
    lab.umount();
    lab.assert_clean(&[daemon]);
}
