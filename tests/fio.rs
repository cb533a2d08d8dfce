//! fio writes 4 KiB blocks in random order with checksums, and reads them back: mem by psync and libaio, ram/* by mmap
//! and libaio.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::live::{Live, has};

fn verify(test: &str, file: &str, engine: &str, more: &[&str]) {
    if !has(test, "fio") {
        return;
    }
    let Some(live) = Live::mount(test, "emu:ram=64M", "") else { return };
    let mut command = live.command("timeout");
    command.args([
        "15",
        "fio",
        "--name=vmtree",
        "--rw=randwrite",
        "--bs=4k",
        "--verify=crc32c",
        "--verify_fatal=1",
    ]);
    // All in the upper block, which the guest does not use.
    command
        .args(["--allow_file_create=0", "--size=8M", "--randseed=7"])
        .arg(format!("--ioengine={engine}"))
        .args(more);
    // fio takes a colon for the end of a name, and the mountpoint has none.
    let output = command.arg(format!("--filename={}", live.path(file).display())).output().unwrap();
    let told =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("err= 0"), "{file} by {engine}: {told}");
    // It was written, and it was read back.
    assert!(told.contains("WRITE: ") && told.contains("READ: "), "{told}");
    assert!(live.errors().is_empty(), "{:?}", live.errors());
}

#[test]
fn fio_on_mem() {
    verify("fio psync on mem", "mem", "psync", &["--offset=4G"]);
}

#[test]
fn fio_on_mem_with_several_requests_at_once() {
    verify("fio libaio on mem", "mem", "libaio", &["--offset=4G", "--iodepth=16", "--direct=1"]);
}

#[test]
fn fio_on_ram_by_mmap() {
    verify("fio mmap on ram/high", "ram/high", "mmap", &[]);
}

#[test]
fn fio_on_ram_with_several_requests_at_once() {
    verify("fio libaio on ram/high", "ram/high", "libaio", &["--iodepth=16"]);
}
