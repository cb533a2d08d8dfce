//! The conformance suite over real mounts: the built-in machine, and real QEMU with the same guest ELF.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "labs/qemu/lab.rs"]
mod qemu;

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::live::{Live, skip};
use qemu::Vm;
use vmtree_conformance::{Summary, checks, run};

/// One VM at a time: the checks compare times too.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the suite over a mount, or those checks whose names begin so; nothing may fail.
fn conforms(live: &Live, begins: &[&str]) -> Summary {
    let meant = |name: &str| begins.iter().any(|begins| name.starts_with(begins));
    let only: Vec<String> = checks().map(|check| check.name.to_owned()).filter(|name| meant(name)).collect();
    let vm = vmtree_conformance::Vm::open(&live.path("")).and_then(vmtree_conformance::Vm::booted).unwrap();
    let mut lines = Vec::new();
    let summary = run(&vm, &only, &mut |line| lines.push(line.to_owned()));
    println!("{}\n{summary}", lines.join("\n"));
    let failed: Vec<&String> = lines.iter().filter(|line| line.starts_with("FAILED")).collect();
    assert!(failed.is_empty(), "{failed:#?}\n{summary}\nerrors:\n{}", live.text("errors"));
    summary
}

fn emu(test: &str, source: &str) {
    let _alone = alone();
    let Some(live) = Live::mount(test, source, "") else { return };
    let summary = conforms(&live, &[]);
    assert_eq!(summary.skipped, 0, "the built-in machine offers all that the suite checks");
}

#[test]
fn emu_with_one_vcpu() {
    emu("emu_with_one_vcpu", "emu:vcpus=1");
}

#[test]
fn emu_with_two_vcpus() {
    emu("emu_with_two_vcpus", "emu:vcpus=2,seed=7");
}

#[test]
fn emu_with_four_vcpus_and_holes_that_fail() {
    const TEST: &str = "emu_with_four_vcpus_and_holes_that_fail";
    let _alone = alone();
    let Some(live) = Live::mount(TEST, "emu:vcpus=4,ram=32M", "holes=eio") else { return };
    assert_eq!(conforms(&live, &[]).skipped, 0);
}

/// Real QEMU with vmtree's plugin: its events too.
#[test]
fn qemu_with_the_plugin() {
    const TEST: &str = "qemu_with_the_plugin";
    let plugin = match qemu::plugin(env!("CARGO_BIN_EXE_vmtree")) {
        Ok(plugin) => plugin,
        Err(why) => return skip(TEST, why),
    };
    let summary = qemu(TEST, "2", &[], &[SHARED, &["-plugin", &plugin]].concat());
    assert!(summary.is_none_or(|summary| summary.passed >= 80), "{summary:?}");
}

/// Real QEMU, its registers and execution as far as the mount offers them.
fn qemu(test: &str, vcpus: &str, begins: &[&str], backend: &[&str]) -> Option<Summary> {
    if !qemu::have_qemu() {
        skip(test, "QEMU is not installed");
        return None;
    }
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let elf = folder.path().join("guest.elf");
    fs::write(&elf, vmtree_guest::elf()).unwrap();
    let kernel = ["-accel", "tcg", "-m", "256M", "-smp", vcpus, "-kernel", elf.to_str().unwrap()];
    let vm = Vm::start(&[&kernel, backend].concat());
    let live = Live::mount(test, &format!("qemu:{}", vm.qmp()), "")?;
    let summary = conforms(&live, begins);
    assert!(summary.passed >= 10, "{summary}");
    Some(summary)
}

/// What the way to memory changes: all else is checked with one vCPU and with four.
const MEMORY: &[&str] = &["tree", "memory", "pause", "registers"];
const SHARED: &[&str] =
    &["-object", "memory-backend-memfd,id=m,size=256M,share=on", "-machine", "pc,memory-backend=m"];

#[test]
fn qemu_with_a_shared_backend() {
    qemu("qemu_with_a_shared_backend", "2", MEMORY, SHARED);
}

#[test]
fn qemu_with_its_own_memory() {
    qemu("qemu_with_its_own_memory", "2", MEMORY, &[]);
}

#[test]
fn qemu_with_one_vcpu() {
    qemu("qemu_with_one_vcpu", "1", &[], SHARED);
}

#[test]
fn qemu_with_four_vcpus() {
    qemu("qemu_with_four_vcpus", "4", &[], SHARED);
}
