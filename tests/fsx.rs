//! fsx (crate `fsx`) on mem and ram/*: random reads, writes and mappings against a model of its own. The VM is paused,
//! or the RAM is none that the guest uses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;

use common::live::{Live, has};

/// fsx's configuration: it never changes a file's length here. `mapped` is the weight of mmap.
fn config(mapped: u32) -> String {
    format!(
        "flen = 4194304\nblockmode = true\n\
         [opsize]\nmax = 65536\nmin = 1\nalign = 1\n\
         [weights]\nread = 10\nwrite = 10\nmapread = {mapped}\nmapwrite = {mapped}\ninvalidate = {}\n\
         close_open = 0\ntruncate = 0\nfsync = 1\nfdatasync = 1\npunch_hole = 0\nposix_fallocate = 0\n\
         sendfile = 2\nposix_fadvise = 1\ncopy_file_range = 0\n",
        u32::from(mapped > 0),
    )
}

/// Runs fsx on a file of a mount, with a seed that a failure tells.
fn exercise(test: &str, file: &str, mapped: u32, paused: bool) {
    if !has(test, "fsx") {
        return;
    }
    let Some(live) = Live::mount(test, "emu:ram=64M", "") else { return };
    if paused {
        live.write("ctl", "pause").unwrap();
    }
    let conf = live.scratch().join("fsx.toml");
    fs::write(&conf, config(mapped)).unwrap();
    for seed in ["1", "20261122"] {
        let mut command = live.command("timeout");
        command
            .args(["15", "fsx", "-q", "-N", "5000", "-S", seed, "-P"])
            .arg(live.scratch())
            .arg("-f")
            .arg(&conf);
        let output = command.arg(live.path(file)).output().unwrap();
        let told =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && told.contains("A-OK"), "{file}, seed {seed}: {told}");
    }
    assert!(live.errors().is_empty(), "{:?}", live.errors());
}

#[test]
fn fsx_on_mem() {
    exercise("fsx on mem", "mem", 0, true);
}

#[test]
fn fsx_on_ram_with_mmap() {
    exercise("fsx on ram/low", "ram/low", 10, true);
}

#[test]
fn fsx_on_ram_of_a_running_vm() {
    // The guest lives in the lower block.
    exercise("fsx on ram/high", "ram/high", 10, false);
}
