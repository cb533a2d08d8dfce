//! QEMU guests that KVM runs: by this machine's /dev/kvm, and in the nested lab, where a Debian kernel on TCG's SVM has
//! kvm_amd and everything is checked inside (docs/labs.md).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "labs/qemu/lab.rs"]
mod qemu;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use common::live::{Live, skip};
use common::wait_until;
use qemu::Vm;
use vmtree_guest::Mailbox;
use vmtree_guest::mailbox::header;

const SHARED: &[&str] =
    &["-object", "memory-backend-memfd,id=m,size=64M,share=on", "-machine", "pc,memory-backend=m"];

/// A guest on this machine's KVM, and its mount. A KVM in software may lack what `-cpu host` promises of
/// IA32_ARCH_CAPABILITIES.
fn on_kvm(test: &str, args: &[&str]) -> Option<(Vm, Live)> {
    if !qemu::have_qemu() || !qemu::have_kvm() {
        skip(test, "no QEMU or no /dev/kvm");
        return None;
    }
    let kvm = ["-accel", "kvm", "-cpu", "host,-arch-capabilities", "-m", "64M"];
    let mut vm = Vm::start(&[&kvm, args].concat());
    // SeaBIOS writes the end of memory below 1 MiB, in KiB, into the BIOS data area at 0x413. A mount before that would
    // see a map that it still changes.
    wait_until("SeaBIOS has run", || vm.xp(0x413) & 0xffff == 639);
    let live = Live::mount(test, &format!("qemu:{}", vm.qmp()), "")?;
    assert!(live.text("info").contains("\naccelerator kvm\n"), "{}", live.text("info"));
    Some((vm, live))
}

/// The ranges of `mem.map` that memory lies behind, up to the end of `mem`: the firmware's own ROM lies above.
fn ranges(live: &Live) -> Vec<(u64, usize)> {
    let map = live.text("mem.map");
    let of_memory = map.lines().filter(|line| line.contains(" ram") || line.contains(" rom"));
    let range = |line: &str| {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
        (number(start), (number(end) - number(start)) as usize)
    };
    let end = fs::metadata(live.path("mem")).unwrap().len();
    of_memory.map(range).filter(|(start, _)| *start < end).collect()
}

/// All of a stopped guest's memory, and a word written from each side.
fn mem_is_qemus_own(vm: &mut Vm, live: &Live) {
    vm.human("stop");
    let ranges = ranges(live);
    assert!(ranges.iter().map(|(_, bytes)| bytes).sum::<usize>() >= 64 << 20, "{ranges:x?}");
    for (start, bytes) in ranges {
        let mut ours = vec![0xee; bytes];
        live.open("mem").read_exact_at(&mut ours, start).unwrap();
        assert!(ours == vm.pmemsave(start, bytes), "{start:#x} differs from QEMU's own copy");
    }
    live.open("mem").write_all_at(&0x1122_3344_5566_7788_u64.to_le_bytes(), 0x40_0000).unwrap();
    assert_eq!(vm.xp(0x40_0000), 0x1122_3344_5566_7788);
    vm.human("cont");
}

fn firmware(test: &str, backend: &[&str]) {
    let Some((mut vm, live)) = on_kvm(test, backend) else { return };
    mem_is_qemus_own(&mut vm, &live);
}

#[test]
fn mem_of_firmware_in_shared_memory() {
    firmware("mem_of_firmware_in_shared_memory", SHARED);
}

#[test]
fn mem_of_firmware_in_private_memory() {
    firmware("mem_of_firmware_in_private_memory", &[]);
}

fn our_guest(test: &str, backend: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let elf = folder.path().join("guest.elf");
    fs::write(&elf, vmtree_guest::elf()).unwrap();
    let kernel = ["-kernel", elf.to_str().unwrap()];
    let Some((mut vm, live)) = on_kvm(test, &[&kernel, backend].concat()) else { return };
    let mailbox = Mailbox::new(live.open("mem"));
    let word = |field| mailbox.header(field).unwrap();
    wait_until("the guest has come to its idle loop", || word(header::ONLINE) == 1);
    let greeting = vmtree_guest::layout::GREETING;
    live.open("mem").write_all_at(b"from the mount\0", greeting).unwrap();
    let answered = || mailbox.reply().unwrap().starts_with("FROM THE MOUNT");
    // Some software KVM breaks ring 3: the guest's processes, which answer, then end it, and it tells its crash (state 2).
    wait_until("the guest answers or tells its crash", || answered() || word(header::STATE) == 2);
    if !answered() {
        skip(&format!("{test}, the greeting"), "ring 3 is broken under this KVM: the guest crashed");
    }
    mem_is_qemus_own(&mut vm, &live);
}

#[test]
fn mem_of_our_guest_in_shared_memory() {
    our_guest("mem_of_our_guest_in_shared_memory", SHARED);
}

#[test]
fn mem_of_our_guest_in_private_memory() {
    our_guest("mem_of_our_guest_in_private_memory", &[]);
}

#[test]
fn the_nested_lab_finds_nothing_wrong() {
    const TEST: &str = "the_nested_lab_finds_nothing_wrong";
    if std::env::var_os("VMTREE_LABS").is_none_or(|labs| labs != "1") {
        return skip(TEST, "VMTREE_LABS=1 runs it; tests/labs/kvm/lab.sh run does the same");
    }
    if !qemu::have_qemu() {
        return skip(TEST, "QEMU is not installed");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/labs/kvm/lab.sh");
    let output = Command::new(script).arg("run").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{said}");
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.lines().filter(|line| line.contains("|ok|")).count() >= 20, "{said}");
}
