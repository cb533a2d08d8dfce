//! The driver of Xen domains, in the lab: a real Xen and a dom0 on Bochs, where vmtree mounts the conformance guest
//! (docs/labs.md).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;
use std::process::Command;

use common::live::{has, skip};

/// Runs the lab, and returns what it said a line a check.
fn lab(test: &str, args: &[&str]) -> Option<String> {
    if std::env::var_os("VMTREE_LABS").is_none_or(|labs| labs != "1") {
        skip(test, "VMTREE_LABS=1 runs it; tests/labs/xen/lab.sh does the same");
        return None;
    }
    if !["mmdebstrap", "qemu-system-x86_64"].iter().all(|program| has(test, program)) {
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/labs/xen/lab.sh");
    // The whole suite takes up to twelve minutes where Bochs has a processor to itself.
    let output = Command::new(script).args(args).env("VMTREE_LAB_SECONDS", "3000").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{said}");
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    Some(said)
}

/// How many of the suite's checks were told so.
fn told(said: &str, word: &str) -> usize {
    said.lines().filter(|line| line.starts_with("T|suite-") && line.contains(&format!("|{word}|"))).count()
}

/// The whole suite.
fn suite(test: &str, args: &[&str], least: usize) {
    let Some(said) = lab(test, args) else { return };
    assert!(told(&said, "ok") >= least, "{said}");
    for check in ["views-switch", "slat-watch", "watched-progress", "inject-exceptions"] {
        assert!(said.contains(&format!("T|suite-{check}|ok|")), "{check}: {said}");
    }
}

#[test]
fn the_suite_passes_in_dom0_on_bochs() {
    suite("the_suite_passes_in_dom0_on_bochs", &["run", "bochs"], 101);
}

#[test]
fn the_suite_passes_with_two_vcpus_on_bochs() {
    suite("the_suite_passes_with_two_vcpus_on_bochs", &["run", "bochs", "vcpus=2"], 101);
}

/// A PV guest needs no hardware virtualization, and has what needs none.
#[test]
fn memory_and_registers_of_a_pv_guest_in_dom0_in_qemu() {
    let Some(said) = lab("memory_and_registers_of_a_pv_guest_in_dom0_in_qemu", &["run", "qemu", "pv"]) else {
        return;
    };
    let checks = [
        "early",
        "boots",
        "ram",
        "lacks",
        "banner",
        "tables",
        "registers",
        "writes",
        "pause",
        "change",
        "killed",
        "seen-again",
    ];
    for check in checks.iter().chain(&["balloon", "destroyed", "left"]) {
        assert!(said.contains(&format!("T|{check}|ok|")), "{check}: {said}");
    }
}

/// An HVM domain has a device model, which is a QEMU in dom0.
#[test]
fn an_hvm_domain_with_a_device_model_in_dom0_in_qemu() {
    let checks =
        ["run", "qemu", "hvm", "tree", "memory", "registers-o", "registers-p", "registers-w", "pause"];
    let Some(said) = lab("an_hvm_domain_with_a_device_model_in_dom0_in_qemu", &checks) else { return };
    assert!(told(&said, "ok") >= 22, "{said}");
    for check in ["model", "listed", "map", "hole", "registers", "ports", "left"] {
        assert!(said.contains(&format!("T|{check}|ok|")), "{check}: {said}");
    }
}

/// Without VMX Xen has neither rights of frames nor views: what is left works all the same. Not there: the guest's own reads
/// of MSRs, because TCG gives it Xen's PAT.
#[test]
fn memory_and_pause_pass_in_dom0_in_qemu() {
    let checks = ["run", "qemu", "tree", "memory", "registers-o", "registers-p", "registers-w", "pause"];
    let Some(said) = lab("memory_and_pause_pass_in_dom0_in_qemu", &checks) else { return };
    assert!(told(&said, "ok") >= 22, "{said}");
}
