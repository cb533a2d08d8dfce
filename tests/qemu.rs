//! A live QEMU guest as files: real QEMU, a real mount, the tools people use.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "labs/qemu/lab.rs"]
mod qemu;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::live::{Live, has, skip};
use common::wait_until;
use qemu::Vm;
use vmtree_guest::{Mailbox, mailbox};

const SHARED: &[&str] =
    &["-object", "memory-backend-memfd,id=m,size=256M,share=on", "-machine", "pc,memory-backend=m"];

/// The conformance guest, written once.
fn guest(folder: &Path) -> PathBuf {
    let path = folder.join("guest.elf");
    fs::write(&path, vmtree_guest::elf()).unwrap();
    path
}

/// QEMU with the conformance guest, and its mount.
fn booted(test: &str, backend: &[&str]) -> Option<(Vm, Live)> {
    if !qemu::have_qemu() {
        skip(test, "QEMU is not installed");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let elf = guest(folder.path());
    let kernel = ["-accel", "tcg", "-m", "256M", "-kernel", elf.to_str().unwrap()];
    let vm = Vm::start(&[&kernel, backend].concat());
    let live = Live::mount(test, &format!("qemu:{}", vm.qmp()), "")?;
    Some((vm, live))
}

fn mem_is_the_guests_own(test: &str, backend: &[&str]) {
    let Some((mut vm, live)) = booted(test, backend) else { return };
    let mailbox = Mailbox::new(live.open("mem"));
    mailbox.wait_running(Duration::from_secs(30)).expect("the guest runs");
    // What the guest counts is read fresh from one open file.
    let ticks = || mailbox.counters(0).unwrap().get(mailbox::Counter::Ticks);
    let before = ticks();
    wait_until("the guest's ticks move", || ticks() > before + 5);
    // What is written is what QEMU sees, and what the guest sees.
    let scratch = 0x40_0000;
    live.open("mem").write_all_at(&0x1122_3344_5566_7788_u64.to_le_bytes(), scratch).unwrap();
    assert_eq!(vm.xp(scratch), 0x1122_3344_5566_7788);
    let greeting = vmtree_guest::layout::GREETING;
    live.open("mem").write_all_at(b"from the mount\0", greeting).unwrap();
    wait_until("the guest answers", || mailbox.reply().unwrap().starts_with("FROM THE MOUNT"));
    // All of memory, as QEMU itself saves it: the same but for what the guest changes meanwhile.
    vm.human("stop");
    let (ours, theirs) = (live.read_at("mem", 1 << 20, 1 << 20).unwrap(), vm.pmemsave(1 << 20, 1 << 20));
    assert!(ours == theirs, "a stopped guest's second MiB differs from QEMU's own copy");
    vm.human("cont");
}

#[test]
fn mem_of_a_shared_backend_is_the_guests_own() {
    mem_is_the_guests_own("mem_of_a_shared_backend_is_the_guests_own", SHARED);
}

#[test]
fn mem_of_a_private_backend_is_the_guests_own() {
    mem_is_the_guests_own("mem_of_a_private_backend_is_the_guests_own", &[]);
}

#[test]
fn a_shared_backend_is_a_file_that_can_be_mapped() {
    const TEST: &str = "a_shared_backend_is_a_file_that_can_be_mapped";
    if !has(TEST, "python3") {
        return;
    }
    let Some((_vm, live)) = booted(TEST, SHARED) else { return };
    assert!(live.text("mem.map").contains("ram/m@0x0"), "{}", live.text("mem.map"));
    let script = "import mmap,os,sys\n\
                  block=os.open(sys.argv[1]+'/ram/m',os.O_RDWR); mem=os.open(sys.argv[1]+'/mem',os.O_RDWR)\n\
                  view=mmap.mmap(block,8<<20); view[0x500000:0x500006]=b'mapped'\n\
                  assert os.pread(mem,6,0x500000)==b'mapped'\n\
                  os.pwrite(mem,b'MAPPED',0x500000); assert view[0x500000:0x500006]==b'MAPPED'\n";
    let output = live.command("python3").args(["-c", script]).arg(live.path("")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn ram_above_a_hole_is_at_its_address() {
    const TEST: &str = "ram_above_a_hole_is_at_its_address";
    let high = ["-m", "2G", "-machine", "pc,max-ram-below-4g=1G,memory-backend=m"];
    let backend = ["-object", "memory-backend-memfd,id=m,size=2G,share=on"];
    let Some((mut vm, live)) = booted(TEST, &[&high[..], &backend[..]].concat()) else { return };
    let at = (4 << 30) + 0x1234_5000;
    live.open("mem").write_all_at(&0xdead_beef_u64.to_le_bytes(), at).unwrap();
    assert_eq!(vm.xp(at), 0xdead_beef);
    assert_eq!(live.read_at("mem", 2 << 30, 16).unwrap(), [0; 16], "a hole reads as zeros");
    assert_eq!(fs::metadata(live.path("mem")).unwrap().len(), 5 << 30);
}

fn change_a_string(test: &str, backend: &[&str]) {
    if !qemu::have_qemu() || !has(test, "grep") {
        return skip(test, "QEMU is not installed");
    }
    let Some(folder) = qemu::debian() else {
        return skip(test, "no Debian guest can be had");
    };
    let (kernel, initrd) = (folder.join("vmlinuz"), folder.join("initrd.gz"));
    let boot = ["-m", "256M", "-append", "console=ttyS0 quiet panic=-1", "-kernel", kernel.to_str().unwrap()];
    let vm = Vm::start(&[&boot[..], &["-initrd", initrd.to_str().unwrap()], backend].concat());
    vm.await_serial("guest says: VMTREE-SECRET-0123456789abcdef", Duration::from_secs(120));
    let Some(live) = Live::mount(test, &format!("qemu:pid={}", vm.pid()), "") else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/qemu/change-string.sh");
    let strings = ["VMTREE-SECRET-0123456789abcdef", "CHANGED-BY-VMTREE-FROM-OUTSIDE"];
    let output = live.command(script).arg(live.path("")).args(strings).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    vm.await_serial("guest says: CHANGED-BY-VMTREE-FROM-OUTSIDE", Duration::from_secs(30));
}

#[test]
fn a_debian_guest_says_what_was_written_into_its_shared_memory() {
    change_a_string("a_debian_guest_says_what_was_written_into_its_shared_memory", SHARED);
}

#[test]
fn a_debian_guest_says_what_was_written_into_its_private_memory() {
    change_a_string("a_debian_guest_says_what_was_written_into_its_private_memory", &[]);
}

#[test]
fn a_killed_qemu_ends_the_mount_under_its_readers() {
    for backend in [SHARED, &[]] {
        const TEST: &str = "a_killed_qemu_ends_the_mount_under_its_readers";
        let Some((mut vm, live)) = booted(TEST, backend) else { return };
        let mem = live.open("mem");
        // Readers that never stop by themselves, one of them standing in the mount.
        let reader = "while dd if=mem of=/dev/null bs=1M status=none; do :; done";
        let mut readers: Vec<_> = (0..3)
            .map(|_| {
                let mut shell = Command::new("sh");
                shell.args(["-c", reader]).current_dir(live.path(""));
                shell.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
            })
            .collect();
        std::thread::sleep(Duration::from_millis(200));
        vm.kill();
        wait_until("the mount is gone", || !live.path("mem").exists());
        for reader in &mut readers {
            wait_until("a reader ends", || reader.try_wait().unwrap().is_some());
        }
        let error = mem.read_at(&mut [0; 8], 0).unwrap_err();
        assert!(
            [libc::ENODEV, libc::ECONNABORTED, libc::ENOTCONN].contains(&error.raw_os_error().unwrap()),
            "{error}"
        );
        live.gone();
    }
}

#[test]
fn list_and_info_know_a_running_vm() {
    const TEST: &str = "list_and_info_know_a_running_vm";
    let Some((vm, live)) = booted(TEST, SHARED) else { return };
    let list = live.command(env!("CARGO_BIN_EXE_vmtree")).arg("list").output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let source = format!("qemu:{}", vm.qmp());
    assert!(list.lines().any(|line| line.starts_with(&source)), "{list}");
    let info = live.command(env!("CARGO_BIN_EXE_vmtree")).args(["info", &source]).output().unwrap();
    let info = String::from_utf8(info.stdout).unwrap();
    assert!(info.contains("driver qemu\n") && info.contains("registers yes\n"), "{info}");
    assert!(info.contains("views no: ") && !live.path("views").exists(), "{info}");
    assert_eq!(live.text("state"), "running\n");
}

/// The cost of a snapshot as `info` tells it.
fn snapshot_us(live: &Live) -> Option<u64> {
    let info = live.text("info");
    let value = info.lines().find_map(|line| line.strip_prefix("register_snapshot_us "))?;
    Some(value.parse().unwrap())
}

#[test]
fn info_tells_what_a_snapshot_costs_once_one_was_taken() {
    const TEST: &str = "info_tells_what_a_snapshot_costs_once_one_was_taken";
    if !qemu::have_qemu() {
        return skip(TEST, "QEMU is not installed");
    }
    let vm = Vm::start(&["-accel", "tcg", "-m", "64M"]);
    let Some(live) = Live::mount(TEST, &format!("qemu:{}", vm.qmp()), "") else { return };
    assert_eq!(snapshot_us(&live), None);
    live.text("vcpu/0/regs/all");
    assert!(snapshot_us(&live).is_some_and(|micros| micros > 50), "{}", live.text("info"));
}

#[test]
fn a_register_of_a_running_kvm_guest_takes_no_snapshot() {
    const TEST: &str = "a_register_of_a_running_kvm_guest_takes_no_snapshot";
    if !qemu::have_qemu() || !qemu::have_kvm() {
        return skip(TEST, "no QEMU or no /dev/kvm");
    }
    let vm = Vm::start(&["-accel", "kvm", "-m", "64M"]);
    // A busy host may have it stopped after all, once and again.
    let quick = (0..20).any(|_| {
        let Some(live) = Live::mount(TEST, &format!("qemu:{}", vm.qmp()), "") else { return true };
        let rflags = live.text("vcpu/0/regs/rflags");
        assert_eq!(
            u64::from_str_radix(rflags.trim().trim_start_matches("0x"), 16).unwrap() & 2,
            2,
            "{rflags}"
        );
        live.text("vcpu/0/regs/cs");
        snapshot_us(&live).is_none()
    });
    assert!(quick, "the VM was stopped each time");
}
