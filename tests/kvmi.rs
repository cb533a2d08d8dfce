//! The kvmi driver over real mounts: vmtree, crate kvmi, libkvmi's interface, a socket, and the built-in machine behind it. It takes the
//! feature `kvmi` and the lab's libkvmi: tests/labs/kvmi/lab.sh.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "labs/kvmi/lab.rs"]
mod lab;
#[path = "labs/kvmi/rough.rs"]
mod rough;

use std::path::PathBuf;

use common::live::{Live, skip};
use lab::Endpoint;

/// A folder with room for sockets, unless the lab is not there.
fn folder(test: &str) -> Option<tempfile::TempDir> {
    if !cfg!(feature = "kvmi") {
        skip(test, "it was built without the feature kvmi (tests/labs/kvmi/lab.sh)");
        return None;
    }
    if lab::program().is_none() {
        skip(test, "vmtree-kvmi-endpoint was not built (tests/labs/kvmi/lab.sh)");
        return None;
    }
    Some(tempfile::tempdir().unwrap())
}

fn source(socket: &std::path::Path) -> String {
    format!("kvmi:{},wait=20", socket.display())
}

/// A mount of a machine, with nobody in between.
fn mounted(test: &str, machine: &str) -> Option<(Live, Endpoint, PathBuf, tempfile::TempDir)> {
    let folder = folder(test)?;
    let socket = folder.path().join("introspector");
    let endpoint = Endpoint::start(&socket, machine);
    let live = Live::mount(test, &source(&socket), "")?;
    Some((live, endpoint, socket, folder))
}

#[cfg(not(feature = "kvmi"))]
#[test]
fn built_without_libkvmi_it_says_what_to_build_with() {
    let output = common::vmtree().args(["info", "kvmi:/tmp/introspector"]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("--features kvmi"), "{told}");
}

/// Runs the suite; nothing may fail.
fn conforms(test: &str, machine: &str) {
    let Some((live, _endpoint, ..)) = mounted(test, machine) else { return };
    let vm = vmtree_conformance::Vm::open(&live.path("")).and_then(vmtree_conformance::Vm::booted).unwrap();
    let mut lines = Vec::new();
    let summary = vmtree_conformance::run(&vm, &[], &mut |line| lines.push(line.to_owned()));
    println!("{}\n{summary}", lines.join("\n"));
    let failed: Vec<&String> = lines.iter().filter(|line| line.starts_with("FAILED")).collect();
    assert!(failed.is_empty(), "{failed:#?}\n{summary}\nerrors:\n{}", live.text("errors"));
    assert!(summary.passed >= 85, "{summary}");
}

#[test]
fn one_vcpu_conforms() {
    conforms("one_vcpu_conforms", "vcpus=1");
}

#[test]
fn two_vcpus_conform() {
    conforms("two_vcpus_conform", "vcpus=2,seed=7");
}

#[test]
fn four_vcpus_conform() {
    conforms("four_vcpus_conform", "vcpus=4,ram=32M");
}

#[test]
fn a_mount_ends_when_qemu_wants_to_stop_the_vm() {
    use std::io::Write;
    const TEST: &str = "a_mount_ends_when_qemu_wants_to_stop_the_vm";
    let Some((live, mut endpoint, ..)) = mounted(TEST, "vcpus=2") else { return };
    live.write("ctl", "pause\n").unwrap();
    writeln!(endpoint.wish, "stop").unwrap();
    live.gone();
    assert!(endpoint.runs());
}

#[test]
fn the_socket_is_ours_alone_and_goes_once_qemu_is_there() {
    use std::os::unix::fs::PermissionsExt;
    const TEST: &str = "the_socket_is_ours_alone_and_goes_once_qemu_is_there";
    let Some(folder) = folder(TEST) else { return };
    let socket = folder.path().join("introspector");
    let mount = |wait: &str| {
        let source = format!("kvmi:{},wait={wait}", socket.display());
        let mut command = common::vmtree();
        command.args(["info", &source]).stderr(std::process::Stdio::piped());
        command
    };
    let waiting = mount("3").spawn().unwrap();
    common::wait_until("the socket is there", || socket.exists());
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let second = mount("3").output().unwrap();
    assert!(String::from_utf8_lossy(&second.stderr).contains("already"), "{second:?}");
    // Who is no QEMU is sent away, and the time runs on.
    use std::io::Write;
    let _ = std::os::unix::net::UnixStream::connect(&socket).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n");
    let told = waiting.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.contains("-object introspection") && told.contains("wait=SECONDS"), "{told}");
    assert!(!socket.exists());
    std::fs::write(&socket, "precious").unwrap();
    let refused = mount("3").output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no socket"), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "precious");
}

/// `VMTREE_ROUGH` runs, from `VMTREE_SEED` on.
#[test]
fn hosts_and_daemons_may_lie_and_die_at_any_message() {
    const TEST: &str = "hosts_and_daemons_may_lie_and_die_at_any_message";
    if folder(TEST).is_none() {
        return;
    }
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (seed, runs) = (number("VMTREE_SEED", 1), number("VMTREE_ROUGH", 33));
    println!("VMTREE_SEED={seed} VMTREE_ROUGH={runs}");
    for run in 0..runs {
        let mut dice = rough::Dice((seed + run).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let way = rough::WAYS[run as usize % rough::WAYS.len()];
        // While it is mounted some thousand messages pass, of which the first are of all kinds. Daemons are there later.
        let after = run % 3 != 0 || matches!(way, rough::Way::DaemonDies);
        let at = if after || run % 2 == 0 { dice.below(60) } else { 2 + dice.below(2000) };
        let at =
            if !after && matches!(way, rough::Way::Shorter | rough::Way::Oversized) { at.max(1) } else { at };
        rough::run(TEST, way, at, after, dice.below(1 << 40));
    }
}
