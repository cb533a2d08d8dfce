//! The kvmi driver over real mounts: vmtree, crate kvmi, libkvmi's interface, a socket, and the built-in machine behind it. It takes the
//! feature `kvmi` and the lab's libkvmi: tests/labs/kvmi/lab.sh.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "labs/kvmi/lab.rs"]
mod lab;

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
