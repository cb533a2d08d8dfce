//! Beside a real libvirtd, whose domain keeps its monitor to itself. Runs with VMTREE_LIBVIRT=1, as root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use vmtree_api::{Driver, ErrorKind, NoHost, Result, RunState, Source};

/// A libvirtd of its own and its domain; ended with the test.
struct Lab(tempfile::TempDir);

impl Lab {
    fn start(how: &[&str]) -> Self {
        let lab = Self(tempfile::tempdir().unwrap());
        lab.run("start", how);
        lab
    }

    fn run(&self, action: &str, arguments: &[&str]) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/labs/libvirt/lab.sh");
        let output = Command::new(script).arg(action).arg(self.0.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{action}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn state(&self) -> String {
        self.run("virsh", &["domstate", "vmtree-lab"]).trim().to_owned()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.run("stop", &[]);
    }
}

fn wanted(test: &str) -> bool {
    let wanted = std::env::var_os("VMTREE_LIBVIRT").is_some_and(|value| value == "1");
    if !wanted {
        println!("skipped: {test}: VMTREE_LIBVIRT=1 runs it, as root and with Debian's libvirtd");
    }
    wanted
}

fn open() -> Result<Box<dyn Driver>> {
    vmtree_qemu::open(Source::new("qemu", "name=vmtree-lab", Vec::new()), Arc::new(NoHost))
}

// One test: both domains bear one name.
#[test]
fn libvirt_keeps_its_monitor_and_shares_the_vm_where_a_second_one_is() {
    if !wanted("libvirt") {
        return;
    }
    let lab = Lab::start(&[]);
    let error = open().err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert!(error.to_string().contains("virsh edit") && error.to_string().contains("second one"), "{error}");
    assert_eq!(lab.state(), "running");
    drop(lab);

    let lab = Lab::start(&["second"]);
    let driver = open().unwrap();
    assert_eq!(driver.facts().name.as_deref(), Some("vmtree-lab"));
    let execution = driver.execution().unwrap();
    let pause = execution.pause().unwrap();
    assert_eq!(lab.state(), "paused");
    pause.resume().unwrap();
    assert_eq!(lab.state(), "running");
    let pause = execution.pause().unwrap();
    lab.run("virsh", &["resume", "vmtree-lab"]);
    lab.run("virsh", &["suspend", "vmtree-lab"]);
    pause.resume().unwrap();
    assert_eq!((execution.state().unwrap(), &*lab.state()), (RunState::Paused, "paused"));
    lab.run("virsh", &["resume", "vmtree-lab"]);
    assert_eq!(execution.state().unwrap(), RunState::Running);
}
