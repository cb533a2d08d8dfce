//! A string that a program inside a Debian guest keeps is found, changed, and read changed by the guest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../../../tests/labs/qemu/lab.rs"]
mod lab;

use std::sync::Arc;
use std::time::Duration;

use lab::Vm;
use vmtree_api::{Gpa, Memory, NoHost, RegionKind, Source};

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

fn change_and_see(backend: &[&str]) {
    let Some(folder) = lab::debian() else { return };
    let (kernel, initrd) = (folder.join("vmlinuz"), folder.join("initrd.gz"));
    let boot = [
        "-m",
        "256M",
        "-kernel",
        kernel.to_str().unwrap(),
        "-initrd",
        initrd.to_str().unwrap(), //
        "-append",
        "console=ttyS0 quiet panic=-1",
    ];
    let vm = Vm::start(&[&boot, backend].concat());
    let kept = String::from_utf8_lossy(KEPT);
    vm.await_serial(&format!("guest says: {kept}"), Duration::from_secs(120));

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
