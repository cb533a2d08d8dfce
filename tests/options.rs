//! What the options of a mount do to its files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use common::live::{END, HIGH, LOW_END, Live, has};

const FILES: &[&str] =
    &["mem", "ram/low", "ctl", "vcpu/0/ctl", "vcpu/0/msr", "vcpu/0/vmem", "vcpu/0/regs/all"];

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

fn mode(live: &Live, name: &str) -> u32 {
    fs::metadata(live.path(name)).unwrap().mode() & 0o7777
}

#[test]
fn files_are_0600_or_0400_and_directories_0700() {
    let Some(live) = Live::mount("modes", "emu:ram=64M", "") else { return };
    for (name, expected) in [
        ("", 0o700),
        ("ram", 0o700),
        ("vcpu/0/regs", 0o700),
        ("mem", 0o600),
        ("ram/low", 0o600),
        ("vcpu/0/regs/rax", 0o600),
        ("info", 0o400),
        ("state", 0o400),
        ("ctl", 0o200),
    ] {
        assert_eq!(mode(&live, name), expected, "{name}");
    }
    // As /proc: a disk of no size, which df(1) leaves out and nobody's alarm takes for a full one.
    assert_eq!(rustix::fs::statvfs(live.path("")).unwrap().f_blocks, 0);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let here = live.path("").to_str().unwrap().trim_end_matches('/').replace(' ', "\\040");
    let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(&here)).unwrap();
    let mut fields = line.split(' ');
    assert_eq!(fields.next(), Some("emu:ram=64M"));
    assert_eq!(fields.nth(1), Some("fuse.vmtree"));
    let flags: Vec<&str> = fields.next().unwrap().split(',').collect();
    for flag in ["rw", "nosuid", "nodev", "noexec", "default_permissions"] {
        assert!(flags.contains(&flag), "{line}");
    }
}

#[test]
fn a_read_only_mount_refuses_every_write() {
    let Some(live) = Live::mount("ro", "emu:ram=64M", "ro") else { return };
    let before = live.read_at("mem", 0x10_0000, 4096).unwrap();
    for name in FILES {
        for open in [OpenOptions::new().write(true), OpenOptions::new().read(true).write(true)] {
            assert_eq!(errno(open.open(live.path(name))), libc::EROFS, "{name}");
        }
        assert_eq!(mode(&live, name) & 0o222, 0, "{name}");
        if !name.ends_with("ctl") {
            assert_eq!(mode(&live, name), 0o400, "{name}");
        }
    }
    assert_eq!(errno(fs::write(live.path("new"), "")), libc::EROFS);
    assert_eq!(errno(fs::create_dir(live.path("new"))), libc::EROFS);
    assert_eq!(errno(fs::remove_file(live.path("mem"))), libc::EROFS);
    assert_eq!(live.read_at("mem", 0x10_0000, 4096).unwrap(), before);
    // Reading works, of ram/* too, and a shared mapping of it can't be written.
    assert_eq!(live.read_at("ram/low", 0x10_0000, 4096).unwrap(), before);
    assert!(live.text("vcpu/0/regs/all").contains("rip=0x"));
    assert_eq!(live.text("state"), "running\n");
    assert!(live.text("info").contains("read_only yes\n"));
    for what in ["write", "pause", "step"] {
        let line = format!("{what} no: this mount is read-only; mount without -o ro\n");
        assert!(live.text("capabilities").contains(&line), "{what}");
    }
}

/// `vmtree` sees to `ro` by itself too: the kernel's flag can be taken back by a remount.
#[test]
fn a_remount_does_not_lift_ro() {
    let Some(live) = Live::mount("remount", "emu:ram=64M", "ro") else { return };
    let done = live.command("mount").args(["-i", "-o", "remount,rw"]).arg(live.path("")).output().unwrap();
    if !done.status.success() {
        // Kernels whose FUSE refuses it outright.
        assert_eq!(errno(live.write("mem", "x")), libc::EROFS);
        return;
    }
    for name in FILES {
        assert_eq!(errno(OpenOptions::new().write(true).open(live.path(name))), libc::EROFS, "{name}");
    }
    assert!(live.errors().last().unwrap().contains("errno=EROFS why="), "{:?}", live.errors());
}

#[test]
fn holes_can_be_errors() {
    let Some(live) = Live::mount("holes=eio", "emu:ram=64M", "holes=eio") else { return };
    let mem = live.open("mem");
    mem.write_all_at(b"edge", LOW_END - 4).unwrap();
    for offset in [LOW_END, LOW_END + 1, 0xfee0_0000, HIGH - 1] {
        assert_eq!(errno(live.read_at("mem", offset, 8)), libc::EIO, "{offset:#x}");
        assert!(live.errors().last().unwrap().contains(&format!("there is no memory at {offset:#x}")));
    }
    // Up to the hole, and not into it.
    assert_eq!(live.read_at("mem", LOW_END - 2, 8).unwrap(), b"ge");
    assert_eq!(live.read_at("mem", HIGH, 8).unwrap().len(), 8);
    assert_eq!(live.read_at("mem", END, 8).unwrap(), b"");
    assert!(live.text("info").contains("holes error\n") || live.text("info").contains("holes eio\n"));
}

#[test]
fn owner_and_mode_are_as_asked_and_hold() {
    let Some(live) = Live::mount("owner and mode", "emu:ram=64M", "allow_other,uid=65534,gid=100,mode=0640")
    else {
        return;
    };
    for name in ["", "mem", "ram/low", "vcpu/0/regs/rax"] {
        let about = fs::metadata(live.path(name)).unwrap();
        assert_eq!((about.uid(), about.gid()), (65534, 100), "{name}");
    }
    assert_eq!(mode(&live, "mem"), 0o640);
    assert_eq!(mode(&live, "info"), 0o440);
    assert_eq!(mode(&live, "ram"), 0o750);
    if !has("owner and mode", "setpriv") {
        return;
    }
    // The folder above is ours alone (tempfile): the mount is looked at from inside.
    let as_user = |uid: &str, gid: &str, command: &str| {
        let mut call = live.command("setpriv");
        call.current_dir(live.path(""));
        call.args(["--reuid", uid, "--regid", gid, "--clear-groups", "sh", "-c", command]);
        call.output().unwrap()
    };
    assert!(
        as_user(
            "65534",
            "65534",
            "head -c 16 mem > /dev/null && printf x | dd of=mem seek=4294967296 bs=1 conv=notrunc"
        )
        .status
        .success()
    );
    assert!(as_user("1234", "100", "head -c 16 mem > /dev/null").status.success());
    assert!(!as_user("1234", "100", "echo pause > ctl").status.success());
    assert!(!as_user("1234", "1234", "head -c 16 mem").status.success());
    assert_eq!(live.text("state"), "running\n");
}

#[test]
fn others_are_kept_out() {
    let Some(live) = Live::mount("others", "emu:ram=64M", "mode=0666") else { return };
    if !has("others", "setpriv") {
        return;
    }
    let mut call = live.command("setpriv");
    call.current_dir(live.path(""));
    let told = call.args(["--reuid", "65534", "--clear-groups", "sh", "-c", "cat info"]).output().unwrap();
    assert!(!told.status.success() && told.stdout.is_empty(), "{told:?}");
}

#[test]
fn each_user_sees_its_own_errors_and_root_all() {
    let Some(live) = Live::mount("errors of users", "emu:ram=64M", "allow_other,mode=0666") else { return };
    if !has("errors of users", "setpriv") {
        return;
    }
    let _ = live.write("ctl", "junk-of-root");
    let as_user = |uid: &str, command: &str| {
        let mut call = live.command("setpriv");
        call.current_dir(live.path(""));
        let done = call.args(["--reuid", uid, "--clear-groups", "sh", "-c", command]).output().unwrap();
        String::from_utf8(done.stdout).unwrap()
    };
    as_user("65534", "echo junk-of-nobody > ctl");
    let seen = as_user("65534", "cat errors");
    assert!(seen.contains("junk-of-nobody") && !seen.contains("junk-of-root"), "{seen}");
    assert!(!as_user("1234", "cat errors").contains("junk"));
    let all = live.text("errors");
    assert!(all.contains("uid=65534") && all.contains("junk-of-root"), "{all}");
}

#[test]
fn cache_and_timeout_are_shown() {
    let options = "cache=1M,cache_ms=250,reply_timeout=0.5,threads=2";
    let Some(live) = Live::mount("cache", "emu:ram=64M", options) else { return };
    let (cache, info) = (live.text("cache"), live.text("info"));
    assert!(cache.contains("limit_bytes 1048576\n") && cache.contains("cache_ms 250\n"), "{cache}");
    assert!(info.contains("reply_timeout_ms 500\n") && info.contains("threads 2\n"), "{info}");
    // Whatever may be stale: what this mount writes is read at once.
    let mem = live.open("mem");
    for n in 0..64_u64 {
        mem.write_all_at(&n.to_le_bytes(), HIGH + 8).unwrap();
        assert_eq!(live.read_at("mem", HIGH + 8, 8).unwrap(), n.to_le_bytes());
    }
}
