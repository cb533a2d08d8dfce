//! A paused QEMU runs again whatever becomes of the mount that paused it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "labs/qemu/lab.rs"]
mod qemu;

use std::thread::sleep;
use std::time::Duration;

use common::live::{Live, skip};
use common::{kill, processes, wait_until};
use qemu::Vm;

/// A VM and its mount.
fn mounted(test: &str) -> Option<(Vm, Live)> {
    if !qemu::have_qemu() {
        skip(test, "QEMU is not installed");
        return None;
    }
    let vm = Vm::start(&["-accel", "tcg", "-m", "64M"]);
    let live = Live::mount(test, &format!("qemu:{}", vm.qmp()), "")?;
    Some((vm, live))
}

fn status(vm: &mut Vm) -> String {
    vm.human("info status").trim().replace("VM status: ", "")
}

/// The daemon that serves this mount.
fn daemon(live: &Live) -> u32 {
    let path = live.path("");
    let path = path.to_str().unwrap().trim_end_matches('/').to_owned();
    let serves = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.starts_with("vmtree\0serve\0") && line.contains(&path)
    };
    processes().find(serves).unwrap()
}

#[test]
fn ctl_pauses_and_resumes_the_vm_and_state_tells() {
    let Some((mut vm, live)) = mounted("ctl_pauses_and_resumes_the_vm_and_state_tells") else { return };
    assert_eq!((live.text("state"), status(&mut vm)), ("running\n".to_owned(), "running".to_owned()));
    live.write("ctl", "pause\n").unwrap();
    assert_eq!((live.text("state"), status(&mut vm)), ("paused\n".to_owned(), "paused".to_owned()));
    live.write("ctl", "resume\n").unwrap();
    assert_eq!((live.text("state"), status(&mut vm)), ("running\n".to_owned(), "running".to_owned()));
    // Paused by somebody else.
    vm.human("stop");
    live.write("ctl", "pause\n").unwrap();
    assert_eq!(live.write("ctl", "resume\n").unwrap_err().raw_os_error(), Some(libc::EBUSY));
    assert_eq!((live.text("state"), status(&mut vm)), ("paused\n".to_owned(), "paused".to_owned()));
    live.write("ctl", "resume force\n").unwrap();
    assert_eq!((live.text("state"), status(&mut vm)), ("running\n".to_owned(), "running".to_owned()));
}

#[test]
fn an_unmounted_vm_runs_again() {
    let Some((mut vm, live)) = mounted("an_unmounted_vm_runs_again") else { return };
    live.write("ctl", "pause\n").unwrap();
    drop(live);
    assert_eq!(status(&mut vm), "running");
}

#[test]
fn a_killed_daemon_leaves_the_vm_running_and_nothing_mounted() {
    const TEST: &str = "a_killed_daemon_leaves_the_vm_running_and_nothing_mounted";
    let Some((mut vm, live)) = mounted(TEST) else { return };
    live.write("ctl", "pause\n").unwrap();
    assert_eq!(status(&mut vm), "paused");
    kill(daemon(&live), 9);
    wait_until("the VM runs again", || status(&mut vm) == "running");
    live.gone();
}

#[test]
fn a_killed_daemon_leaves_the_pause_of_somebody_else() {
    const TEST: &str = "a_killed_daemon_leaves_the_pause_of_somebody_else";
    let Some((mut vm, live)) = mounted(TEST) else { return };
    vm.human("stop");
    live.write("ctl", "pause\n").unwrap();
    kill(daemon(&live), 9);
    live.gone();
    sleep(Duration::from_millis(300));
    assert_eq!(status(&mut vm), "paused");
}

#[test]
fn a_killed_qemu_ends_a_paused_mount() {
    let Some((mut vm, live)) = mounted("a_killed_qemu_ends_a_paused_mount") else { return };
    live.write("ctl", "pause\n").unwrap();
    vm.kill();
    live.gone();
}

/// The undo journal still has our pause then.
#[test]
fn a_killed_daemon_leaves_running_what_a_manager_has_resumed() {
    let Some((mut vm, live)) = mounted("a_killed_daemon_leaves_running_what_a_manager_has_resumed") else {
        return;
    };
    live.write("ctl", "pause\n").unwrap();
    vm.human("cont");
    kill(daemon(&live), 9);
    live.gone();
    sleep(Duration::from_millis(300));
    assert_eq!(status(&mut vm), "running");
    vm.human("stop");
    sleep(Duration::from_millis(1500));
    assert_eq!(status(&mut vm), "paused", "nobody is there to resume it");
}
