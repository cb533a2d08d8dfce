//! The gdbstub: private, closed when idle, and never taken from somebody else.

use std::fs::File;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use vmtree_api::x86::Reg;
use vmtree_api::{ErrorKind, RunState, VcpuId};

use crate::bench::*;

#[test]
fn the_gdbstub_is_private_and_closed_when_idle_and_at_the_end() {
    let Some(mut lab) = boot(1, &[]) else { return };
    let devices = |lab: &mut Lab| lab.vm.human("info chardev");
    assert!(!devices(&mut lab).contains("vmtree-gdb-"), "nothing is opened before its use");
    lab.read(0);
    let open = devices(&mut lab);
    let (_, path) = open.split_once("unix:/tmp/vmtree-gdb-").unwrap_or_else(|| panic!("{open}"));
    let folder = PathBuf::from(format!("/tmp/vmtree-gdb-{}", path.split('/').next().unwrap()));
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    let deadline = Instant::now() + Duration::from_secs(15);
    while folder.exists() || devices(&mut lab).contains("vmtree-gdb-") {
        assert!(Instant::now() < deadline, "{}", devices(&mut lab));
        sleep(Duration::from_millis(100));
    }
    assert!(lab.beats(0));
    lab.read(0);
    assert!(devices(&mut lab).contains("vmtree-gdb-"));
    let Lab { mut vm, driver, .. } = lab;
    drop(driver);
    assert!(!vm.human("info chardev").contains("vmtree-gdb-"));
    assert_eq!(vm.human("info status").trim(), "VM status: running");
}

#[test]
fn anothers_gdbstub_is_left_alone() {
    let gdb = "unix:theirs,server=on,wait=off";
    let Some(mut lab) = boot(1, &["-gdb", gdb]) else { return };
    let registers = lab.driver.registers().unwrap();
    assert!(registers.offers().iter().all(|offer| !offer.writable && offer.id != Reg::Cr8.id()));
    let regs = lab.read(0);
    assert_eq!(regs.efer & 0x501, 0x501);
    assert_eq!(lab.write(0, &[(Reg::R14, 1)]).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(lab.state(), RunState::Running);
    // A debugger that comes stops the VM; then nothing that we do is seen by it.
    let debugger = std::os::unix::net::UnixStream::connect(lab.vm.folder().join("theirs")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while lab.state() == RunState::Running {
        assert!(Instant::now() < deadline);
    }
    let paused = lab.read(0);
    assert_eq!(paused.rip, shown(&lab.vm.human("info registers -a"), 0, "RIP"));
    assert_eq!(lab.step(0, 1).unwrap_err().kind(), ErrorKind::Busy);
    lab.vm.human("cont");
    assert_eq!(lab.driver.registers().unwrap().read(VcpuId(0)).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(lab.state(), RunState::Running);
    assert!(lab.vm.human("info chardev").contains("theirs"));
    drop(debugger);
    // One that is opened after the mount is found at the first use.
    let Some(mut late) = boot(1, &[]) else { return };
    late.vm.human("gdbserver unix:late,server=on,wait=off");
    let error = late.driver.registers().unwrap().read(VcpuId(0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert!(error.to_string().contains("gdbserver none"), "{error}");
    assert_eq!(late.state(), RunState::Running);
    late.vm.human("gdbserver none");
    late.read(0);
}

#[test]
fn a_gdbstub_that_a_killed_vmtree_left_is_closed_and_a_living_ones_is_not() {
    let Some(mut lab) = boot(1, &[]) else { return };
    let folder = tempfile::Builder::new().prefix("vmtree-gdb-").tempdir_in("/tmp").unwrap();
    let line = format!("gdbserver unix:{}/s,server=on,wait=off", folder.path().display());
    let lock = File::open(folder.path()).unwrap();
    lock.lock().unwrap();
    lab.vm.human(&line);
    let read = |lab: &Lab| lab.driver.registers().unwrap().read(VcpuId(0));
    assert_eq!(read(&lab).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(lab.state(), RunState::Running);
    drop(lock);
    read(&lab).unwrap();
    assert!(!folder.path().exists(), "its folder goes too");
    assert_eq!(lab.state(), RunState::Running);
    assert!(lab.beats(0));
}

#[test]
fn recovery_closes_the_gdbstub_of_the_killed_one_and_resumes_nothing_that_runs() {
    let Some(mut lab) = boot(1, &[]) else { return };
    let folder = tempfile::Builder::new().prefix("vmtree-gdb-").tempdir_in("/tmp").unwrap();
    lab.vm.human(&format!("gdbserver unix:{}/s,server=on,wait=off", folder.path().display()));
    let note = format!("gdbstub - - {}\n", folder.path().display());
    vmtree_qemu::recover(&format!("qemu:{}", lab.vm.qmp()), &note).unwrap();
    assert!(!folder.path().exists());
    assert!(!lab.vm.human("info chardev").contains(folder.path().to_str().unwrap()));
    assert_eq!(lab.state(), RunState::Running);
}
