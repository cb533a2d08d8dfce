//! Pause and resume of real QEMUs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../../../tests/labs/qemu/lab.rs"]
mod lab;

use std::sync::Arc;

use lab::Vm;
use vmtree_api::{Driver, NoHost, RunState, Source};

fn open(vm: &Vm) -> Box<dyn Driver> {
    vmtree_qemu::open(Source::new("qemu", &vm.qmp(), Vec::new()), Arc::new(NoHost)).unwrap()
}

/// What QEMU's own monitor says.
fn status(vm: &mut Vm) -> String {
    vm.human("info status").trim().replace("VM status: ", "")
}

/// A small VM without anything to boot from.
fn idle(args: &[&str]) -> Option<Vm> {
    if !lab::have_qemu() {
        return None;
    }
    Some(Vm::start(&[&["-accel", "tcg", "-m", "64M"], args].concat()))
}

#[test]
fn pauses_count_and_the_last_one_lets_the_vm_go_on() {
    let Some(mut vm) = idle(&[]) else { return };
    let driver = open(&vm);
    let execution = driver.execution().unwrap();
    assert_eq!(execution.state().unwrap(), RunState::Running);
    let first = execution.pause().unwrap();
    let second = execution.pause().unwrap();
    assert_eq!((execution.state().unwrap(), &*status(&mut vm)), (RunState::Paused, "paused"));
    first.resume().unwrap();
    assert_eq!((execution.state().unwrap(), &*status(&mut vm)), (RunState::Paused, "paused"));
    drop(second);
    assert_eq!((execution.state().unwrap(), &*status(&mut vm)), (RunState::Running, "running"));
}

#[test]
fn what_was_paused_before_stays_paused() {
    let Some(mut vm) = idle(&["-S"]) else { return };
    let driver = open(&vm);
    let execution = driver.execution().unwrap();
    for state in ["paused (prelaunch)", "paused"] {
        assert_eq!(status(&mut vm), state);
        drop(execution.pause().unwrap());
        assert_eq!((execution.state().unwrap(), &*status(&mut vm)), (RunState::Paused, state));
        vm.human("cont");
        vm.human("stop");
    }
    execution.force_resume().unwrap();
    assert_eq!(status(&mut vm), "running");
    execution.force_resume().unwrap();
}

#[test]
fn a_manager_who_resumes_ends_our_pauses_and_its_later_stop_is_its_own() {
    let Some(mut vm) = idle(&[]) else { return };
    let driver = open(&vm);
    let execution = driver.execution().unwrap();
    let pauses = [execution.pause().unwrap(), execution.pause().unwrap()];
    vm.human("cont");
    assert_eq!(execution.state().unwrap(), RunState::Running);
    for pause in pauses {
        vm.human("stop");
        pause.resume().unwrap();
        assert_eq!(status(&mut vm), "paused");
    }
    vm.human("cont");
    // Both between two looks of ours.
    let pause = execution.pause().unwrap();
    vm.human("cont");
    vm.human("stop");
    pause.resume().unwrap();
    assert_eq!((execution.state().unwrap(), &*status(&mut vm)), (RunState::Paused, "paused"));
}

#[test]
fn a_reset_during_our_pause_is_followed_by_a_run() {
    let Some(mut vm) = idle(&["-action", "reboot=reset"]) else { return };
    let driver = open(&vm);
    let pause = driver.execution().unwrap().pause().unwrap();
    vm.human("system_reset");
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(status(&mut vm), "paused (prelaunch)");
    pause.resume().unwrap();
    assert_eq!(status(&mut vm), "running");
}

#[test]
fn a_dropped_driver_leaves_no_pause() {
    let Some(mut vm) = idle(&[]) else { return };
    let driver = open(&vm);
    let pause = driver.execution().unwrap().pause().unwrap();
    drop(driver);
    assert_eq!(status(&mut vm), "running");
    pause.resume().unwrap();
}
