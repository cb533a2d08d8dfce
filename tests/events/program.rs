//! The program itself on the built-in machine: what a user does, and what is left when processes are killed.

use std::fs::{self, File};
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::live::{Live, has};
use crate::common::{Lab, alive, family, kill, lab, wait_until};

#[test]
fn jq_reads_a_stream_of_json() {
    let test = "jq";
    if !has(test, "jq") {
        return;
    }
    let Some(live) = Live::mount(test, "emu:ram=64M", "") else { return };
    let mut shell = live.command("bash");
    shell.args([
        "-c",
        "timeout 10 cat events/cr3,format=json,dir=to | head -n3 | jq -r '.kind + \" \" + .new'",
    ]);
    let output = shell.current_dir(live.path("")).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && told.lines().count() == 3, "{told}");
    assert!(told.lines().all(|line| line.starts_with("cr3 0x")), "{told}");
}

/// A bash loop that lets the guest go on, event by event, and prints each.
const LOOP: &str = "exec 3<>events/cr3,vcpu=0
for n in 1 2 3 4 5; do
    read -r event <&3
    seq=${event%% *}; seq=${seq#seq=}
    cat vcpu/0/state
    echo \"$seq continue\" >&3
done";

#[test]
fn a_shell_controls_the_guest() {
    let Some(live) = Live::mount("control loop on emu", "emu:ram=64M", "") else { return };
    let output = live.command("bash").args(["-c", LOOP]).current_dir(live.path("")).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{told}");
    assert!(told.lines().count() == 5 && told.lines().all(|line| line.starts_with("held ")), "{told}");
    assert!(live.errors().is_empty(), "{:?}", live.errors());
    wait_until("it runs on", || live.text("vcpu/0/state") == "running\n");
}

/// Readers that are blocked, and a controller that holds the vCPU and answers nothing.
fn busy(lab: &Lab) -> Vec<std::process::Child> {
    let start = |script: &str| {
        let mut bash = Command::new("bash");
        bash.args(["-c", script]).current_dir(&lab.mountpoint).stdout(Stdio::null()).stderr(Stdio::null());
        bash.spawn().unwrap()
    };
    let mut all: Vec<_> = (0..10).map(|_| start("exec cat events/guest_request")).collect();
    all.push(start("exec 3<>events/cr3,vcpu=0; read -r e <&3; read -r f <&3; read -r g <&3"));
    let held = || {
        fs::read_to_string(lab.mountpoint.join("vcpu/0/state")).is_ok_and(|state| state.starts_with("held"))
    };
    wait_until("the vCPU is held", held);
    std::thread::sleep(Duration::from_millis(200));
    all
}

fn gone(mut all: Vec<std::process::Child>) {
    for child in &mut all {
        wait_until("its clients end", || child.try_wait().unwrap().is_some());
    }
}

#[test]
fn umount_with_held_vcpus_and_blocked_readers_is_quick() {
    let Some(lab) = lab("umount while held") else { return };
    let pids = family(lab.mount());
    let clients = busy(&lab);
    let begun = Instant::now();
    lab.umount();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    gone(clients);
    lab.assert_clean(&pids);
}

#[test]
fn a_daemon_killed_while_it_holds_leaves_no_mount_and_no_reader() {
    let Some(lab) = lab("kill the daemon while held") else { return };
    for signal in [9, 15] {
        let daemon = lab.mount();
        let pids = family(daemon);
        let clients = busy(&lab);
        kill(daemon, signal);
        gone(clients);
        lab.assert_clean(&pids);
        assert!(!alive(daemon));
    }
}

#[test]
fn what_a_mount_made_ends_with_it() {
    let Some(lab) = lab("one mount after another") else { return };
    for _ in 0..3 {
        let pids = family(lab.mount());
        let path = |name: &str| lab.mountpoint.join(name);
        fs::create_dir(path("views/hooks")).unwrap();
        fs::write(path("view"), "hooks").unwrap();
        fs::write(path("views/hooks/access"), "0x1000-0x2000 r-x").unwrap();
        let mut file = File::open(path("events/interrupt")).unwrap();
        assert!(file.read(&mut [0; 4096]).unwrap() > 0);
        drop(file);
        lab.umount();
        lab.assert_clean(&pids);
    }
}
