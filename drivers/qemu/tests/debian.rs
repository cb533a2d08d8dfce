//! A string that a program inside a Debian guest keeps is found, changed, and read changed by the guest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../../../tests/labs/qemu/lab.rs"]
mod lab;

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::Vm;
use vmtree_api::{ErrorKind, Gpa, Memory, NoHost, RegionKind, Source};

const KEPT: &[u8] = b"VMTREE-SECRET-0123456789abcdef";
const CHANGED: &[u8] = b"CHANGED-BY-VMTREE-FROM-OUTSIDE";

/// All addresses in RAM where `needle` begins.
fn addresses(memory: &dyn Memory, needle: &[u8]) -> Vec<u64> {
    let mut found = Vec::new();
    for region in memory.map().regions().iter().filter(|region| region.kind == RegionKind::Ram) {
        for at in (region.start.0..region.end.0).step_by(1 << 20) {
            // Windows overlap, so that no needle falls between two.
            let count = (region.end.0 - at).min((1 << 20) + needle.len() as u64 - 1);
            let mut buf = vec![0; count as usize];
            assert_eq!(memory.read(Gpa(at), &mut buf).unwrap(), buf.len());
            if buf == vec![0; buf.len()] {
                continue;
            }
            let hits = buf.windows(needle.len()).enumerate().filter(|(_, window)| *window == needle);
            found.extend(hits.map(|(index, _)| at + index as u64));
        }
    }
    found
}

/// The guest with `args`, when it has said its string.
fn boot(args: &[&str]) -> Option<Vm> {
    let folder = lab::debian()?;
    let (kernel, initrd) = (folder.join("vmlinuz"), folder.join("initrd.gz"));
    let boot = [
        "-kernel",
        kernel.to_str().unwrap(),
        "-initrd",
        initrd.to_str().unwrap(), //
        "-append",
        "console=ttyS0 quiet panic=-1",
    ];
    let vm = Vm::start(&[&boot, args].concat());
    let kept = String::from_utf8_lossy(KEPT);
    vm.await_serial(&format!("guest says: {kept}"), Duration::from_secs(120));
    Some(vm)
}

fn change_and_see(backend: &[&str]) {
    let Some(vm) = boot(&[&["-m", "256M"], backend].concat()) else { return };
    let driver = vmtree_qemu::open(Source::new("qemu", &vm.qmp(), Vec::new()), Arc::new(NoHost)).unwrap();
    let memory = driver.memory();
    let found = addresses(memory, KEPT);
    assert!(!found.is_empty(), "the string is not in memory");
    // Copies lie in buffers of the console and of the shell too: all are changed, the shell's variable among them.
    for address in &found {
        assert_eq!(memory.write(Gpa(*address), CHANGED).unwrap(), CHANGED.len());
    }
    vm.await_serial(&format!("guest says: {}", String::from_utf8_lossy(CHANGED)), Duration::from_secs(30));
}

#[test]
fn a_string_in_a_debian_guest_is_changed_through_a_shared_backend() {
    if lab::have_qemu() {
        change_and_see(&[
            "-object",
            "memory-backend-memfd,id=m,size=256M,share=on",
            "-machine",
            "pc,memory-backend=m",
        ]);
    }
}

#[test]
fn a_string_in_a_debian_guest_is_changed_through_the_process() {
    if lab::have_qemu() {
        change_and_see(&[]);
    }
}

/// Waits until the map has `bytes` of RAM, reading all of the DIMM's place meanwhile.
fn await_ram(memory: &dyn Memory, dimm: Gpa, bytes: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut buf = vec![0; 1 << 20];
    while memory.map().ram_bytes() != bytes {
        assert!(Instant::now() < deadline, "{:x?}", memory.map().regions());
        for at in (0..128).map(|at| Gpa(dimm.0 + (at << 20))) {
            // It is there, or a hole; a reader neither hangs nor dies.
            if let Err(error) = memory.read(at, &mut buf) {
                assert_ne!(error.kind(), ErrorKind::Gone, "{error}");
            }
        }
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_dimm_that_the_guest_gives_back_leaves_the_map_under_readers() {
    if !lab::have_qemu() {
        return;
    }
    let Some(mut vm) = boot(&["-m", "256M,slots=2,maxmem=1G"]) else { return };
    let driver = vmtree_qemu::open(Source::new("qemu", &vm.qmp(), Vec::new()), Arc::new(NoHost)).unwrap();
    let memory = driver.memory();
    let before = memory.map().ram_bytes();
    let dimm = Gpa(0x1_0000_0000);
    for _ in 0..2 {
        assert_eq!(vm.human("object_add memory-backend-memfd,id=stick,size=128M,share=on").trim(), "");
        assert_eq!(vm.human("device_add pc-dimm,id=dimm,memdev=stick").trim(), "");
        await_ram(memory, dimm, before + (128 << 20));
        assert_eq!(memory.write(dimm, b"plugged").unwrap(), 7);
        let mut buf = [0; 7];
        memory.read(dimm, &mut buf).unwrap();
        assert_eq!(&buf, b"plugged");
        // A request to the guest, which gives it back by ACPI when it can.
        let begun = Instant::now();
        while vm.human("info memory-devices").contains("dimm") {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "the guest does not give it back: {}",
                vm.serial()
            );
            vm.human("device_del dimm");
            sleep(Duration::from_millis(500));
        }
        await_ram(memory, dimm, before);
        assert_eq!(vm.human("object_del stick").trim(), "");
        assert_eq!(memory.read(dimm, &mut buf).unwrap_or(0), 0, "{buf:?}");
    }
}
