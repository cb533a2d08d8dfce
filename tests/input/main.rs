//! Bad input to a mounted tree: each case has its errno, a line in `errors`, and changes nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod registers;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::time::Duration;

use common::live::{END, HIGH, LOW_END, Live};

const MOST: u64 = i64::MAX as u64;

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

/// Does something that must be refused with `code`, and checks that `errors` has one line more, that it names the
/// file and the errno, and that it has these words.
fn refused<T: std::fmt::Debug>(
    live: &Live,
    path: &str,
    (code, name): (i32, &str),
    words: &str,
    act: impl FnOnce() -> io::Result<T>,
) {
    let before = live.errors();
    assert_eq!(errno(act()), code, "{path} ({words})");
    let after = live.errors();
    assert!(after.len() == before.len() + 1 || after.len() == 64, "{path} ({words}): {after:?}");
    let last = after.last().unwrap();
    let wanted = format!(" path={path} errno={name} why=");
    assert!(last.contains(&wanted) && last.contains(words), "{last}\nwanted:{wanted}...{words}");
}

const EIO: (i32, &str) = (libc::EIO, "EIO");
const EINVAL: (i32, &str) = (libc::EINVAL, "EINVAL");
const ERANGE: (i32, &str) = (libc::ERANGE, "ERANGE");
const E2BIG: (i32, &str) = (libc::E2BIG, "E2BIG");
const EACCES: (i32, &str) = (libc::EACCES, "EACCES");
const ENOENT: (i32, &str) = (libc::ENOENT, "ENOENT");

/// The bytes around each edge of RAM.
fn edges(live: &Live) -> Vec<Vec<u8>> {
    [0, LOW_END - 16, LOW_END, HIGH - 16, HIGH, END - 16, END]
        .map(|at| live.read_at("mem", at, 16).unwrap())
        .into()
}

#[test]
fn reads_of_mem_at_the_ends() {
    let Some(live) = Live::mount("reads at the ends", "emu:ram=64M", "") else { return };
    let mem = live.open("mem");
    mem.write_all_at(b"0123456789abcdef", LOW_END - 16).unwrap();
    mem.write_all_at(b"fedcba9876543210", END - 16).unwrap();
    mem.write_all_at(b"high", HIGH).unwrap();
    for (offset, bytes, expected) in [
        (0, 0, &b""[..]),
        (LOW_END - 1, 1, b"f"),
        (LOW_END - 2, 4, b"ef\0\0"),
        (LOW_END, 4, b"\0\0\0\0"),
        (0xfee0_0000, 4, b"\0\0\0\0"),
        (HIGH - 2, 4, b"\0\0hi"),
        (END - 1, 1, b"0"),
        (END - 2, 100, b"10"),
        (END, 1, b""),
        (END + 1, 1, b""),
        (1 << 62, 4096, b""),
        (MOST - 1, 1, b""),
    ] {
        assert_eq!(live.read_at("mem", offset, bytes).unwrap(), expected, "{offset:#x}");
    }
    // The kernel's own answer: the end of the range is no file offset any more.
    assert_eq!(errno(live.read_at("mem", MOST, 1)), libc::EINVAL);
    assert!(live.errors().is_empty(), "{:?}", live.errors());
}

#[test]
fn writes_of_mem_at_the_ends() {
    let Some(live) = Live::mount("writes at the ends", "emu:ram=64M", "") else { return };
    let mem = live.open("mem");
    let before = edges(&live);
    assert_eq!(mem.write_at(b"", LOW_END).unwrap(), 0);
    for offset in [LOW_END, LOW_END + 1, 0xfee0_0000, HIGH - 1, END, END + 1, 1 << 62, MOST - 1] {
        let words = format!("there is no memory at {offset:#x}");
        refused(&live, "mem", EIO, &words, || mem.write_at(b"x", offset));
    }
    assert_eq!(errno(mem.write_at(b"x", MOST)), libc::EINVAL);
    assert_eq!(edges(&live), before);
    assert_eq!(fs::metadata(live.path("mem")).unwrap().size(), END);

    // Across into the hole, and past the end: the part before it, and the short count.
    assert_eq!(mem.write_at(b"abcd", LOW_END - 3).unwrap(), 3);
    assert_eq!(mem.write_at(b"wxyz", END - 1).unwrap(), 1);
    let large = vec![b'L'; 4 << 20];
    assert_eq!(mem.write_at(&large, LOW_END - (2 << 20)).unwrap(), 2 << 20);
    assert_eq!(live.read_at("mem", LOW_END - 2, 4).unwrap(), b"LL\0\0");
    assert_eq!(live.read_at("mem", END - 1, 4).unwrap(), b"w");
    assert_eq!(live.read_at("mem", HIGH - 4, 4).unwrap(), [0; 4]);
}

#[test]
fn truncation_and_append_change_nothing() {
    let Some(live) = Live::mount("truncation", "emu:ram=64M", "") else { return };
    let before = edges(&live);
    for (name, size) in [("mem", END), ("ram/low", LOW_END), ("ram/high", END - HIGH)] {
        let file = live.open(name);
        for length in [0, 1, size * 2] {
            file.set_len(length).unwrap();
            assert_eq!(fs::metadata(live.path(name)).unwrap().size(), size, "{name}");
        }
        drop(OpenOptions::new().write(true).truncate(true).open(live.path(name)).unwrap());
        assert_eq!(fs::metadata(live.path(name)).unwrap().size(), size, "{name}");
        assert_eq!(live.read_at(name, size, 1).unwrap(), b"");
    }
    // Its end is no place to write to.
    let mut end = OpenOptions::new().append(true).open(live.path("mem")).unwrap();
    refused(&live, "mem", EIO, "there is no memory", || end.write(b"x"));
    assert_eq!(edges(&live), before);
}

#[test]
fn reads_of_ram_at_the_ends() {
    let Some(live) = Live::mount("ram at the ends", "emu:ram=64M", "") else { return };
    let ram = live.open("ram/low");
    ram.write_all_at(b"last", LOW_END - 4).unwrap();
    assert_eq!(live.read_at("ram/low", LOW_END - 2, 8).unwrap(), b"st");
    for offset in [LOW_END, LOW_END + 1, 1 << 62, MOST - 1] {
        assert_eq!(live.read_at("ram/low", offset, 1).unwrap(), b"", "{offset:#x}");
    }
    assert_eq!(errno(live.read_at("ram/low", MOST, 1)), libc::EINVAL);
}

#[test]
fn writes_of_ram_past_the_end() {
    let Some(live) = Live::mount("ram past the end", "emu:ram=64M", "") else { return };
    let ram = live.open("ram/low");
    for offset in [LOW_END, LOW_END + 4096, 1 << 40, MOST - 1] {
        ram.write_at(b"x", offset).unwrap_err();
    }
    assert_eq!(ram.write_at(b"abcd", LOW_END - 2).unwrap(), 2);
    assert_eq!(live.read_at("ram/low", LOW_END - 2, 8).unwrap(), b"ab");
}

#[test]
fn control_files_refuse_what_they_do_not_know() {
    let Some(live) = Live::mount("control files", "emu:ram=64M", "") else { return };
    let long = format!("pause{}", " ".repeat(128 << 10));
    let comment = "#".repeat(128 << 10);
    for (file, text, error, words) in [
        ("ctl", "junk", EINVAL, "'junk' is no verb"),
        ("ctl", "pause junk", EINVAL, "'junk'"),
        ("ctl", "pause; rm -rf /", EINVAL, "'pause;'"),
        ("ctl", "PAUSE", EINVAL, "'PAUSE'"),
        ("ctl", "\n", EINVAL, "there is no verb"),
        ("ctl", &comment, EINVAL, "there is no verb"),
        ("ctl", "pause\0", EINVAL, "without NUL"),
        ("ctl", &long, E2BIG, "131077 bytes"),
        ("ctl", "step", EINVAL, "'step'"),
        ("vcpu/0/ctl", "pause", EINVAL, "'pause'"),
        ("vcpu/0/ctl", "step 0", ERANGE, "COUNT goes from 1"),
        ("vcpu/0/ctl", "step -1", EINVAL, "'-1'"),
        ("vcpu/0/ctl", "step 1 2", EINVAL, "'2'"),
        ("vcpu/0/ctl", "step 0x8000000000000001", ERANGE, "COUNT goes from 1"),
        ("vcpu/0/ctl", "step 0x10000000000000000", ERANGE, "0x10000000000000000"),
    ] {
        refused(&live, file, error, words, || live.write(file, text));
        assert_eq!(live.text("state"), "running\n", "{text:.20}");
    }
    refused(&live, "ctl", EINVAL, "UTF-8", || live.write("ctl", [0xff, 0xfe]));
    assert_eq!(live.text("state"), "running\n");
    // What is not ours to end, and what takes a pause.
    live.write("ctl", "pause").unwrap();
    live.write("ctl", "resume").unwrap();
    refused(&live, "vcpu/0/ctl", (libc::EBUSY, "EBUSY"), "pause", || live.write("vcpu/0/ctl", "step"));
    assert_eq!(live.text("state"), "running\n");
}

/// All registers but the clock, which stands while the VM is paused but is read anew.
#[test]
fn virtual_memory_that_is_not_mapped_is_refused_in_words() {
    let Some(live) = Live::mount("vmem", "emu:ram=64M", "") else { return };
    // By then it runs on page tables of its own, with a guard page in them.
    vmtree_guest::Mailbox::new(live.open("mem")).wait_running(Duration::from_secs(30)).unwrap();
    live.write("ctl", "pause").unwrap();
    let vmem = live.open("vcpu/0/vmem");
    let path = "vcpu/0/vmem";
    for (offset, words) in [
        (0x7fff_0000_0000, "level 4 entry is not present"),
        (0x8000_0000_0000, "not canonical"),
        (MOST - 4095, "not present"),
        (0x20_f000, "level 1 entry is not present"),
    ] {
        refused(&live, path, EIO, words, || vmem.read_at(&mut [0; 8], offset));
        refused(&live, path, EIO, words, || vmem.write_at(&[1; 8], offset));
    }
    // Up to the guard page of the guest, and no further.
    assert_eq!(vmem.read_at(&mut [0; 64], 0x20_f000 - 16).unwrap(), 16);
    for name in
        ["translate,gva=zz", "translate,gva=", "translate,gva=1,gva=2", "translate,gpa=1", "translate,x"]
    {
        let path = format!("vcpu/0/{name}");
        refused(&live, &path, ENOENT, "", || fs::read(live.path(&path)));
    }
}

#[test]
fn views_permissions_and_injections_refuse_what_makes_no_sense() {
    let Some(live) = Live::mount("views and events", "emu:ram=64M", "") else { return };
    fs::create_dir(live.path("views/hooks")).unwrap();
    for (file, text, error, words) in [
        ("view", "nosuch", EINVAL, "no view nosuch"),
        ("vcpu/0/view", "a b", EINVAL, "one view"),
        ("views/0/access", "0x1000-0x3000", EINVAL, "'0x1000-0x3000'"),
        ("views/0/access", "0x1000-0x3000 rwz", EINVAL, "'rwz'"),
        ("views/0/access", "0x1000-0x3000 -w-", EINVAL, "write without read"),
        ("views/0/access", "0x1000-0x2fff r--", EINVAL, ""),
        ("views/0/access", "0x3000000-0x3001000 r--", EIO, "0x3000000-0x3001000 is not all in one block"),
        ("views/hooks/remap", "0x7000", EINVAL, "'0x7000'"),
        ("views/hooks/remap", "0x7001 copy", EINVAL, ""),
        ("views/hooks/remap", "0xfee00000 copy", EIO, "0xfee00000 is not RAM; mem.map"),
        ("vcpu/0/inject", "pf", EINVAL, "pf needs"),
        ("vcpu/0/inject", "interrupt 256", ERANGE, "8 bits"),
    ] {
        let shown = (live.text("view"), live.text("views/0/access"), live.text("views/hooks/remap"));
        refused(&live, file, error, words, || live.write(file, text));
        assert_eq!((live.text("view"), live.text("views/0/access"), live.text("views/hooks/remap")), shown);
    }
    for name in ["a b", &"x".repeat(33)] {
        let path = format!("views/{name}");
        refused(&live, &path.replace(' ', "\\040"), EINVAL, "1 to 32", || fs::create_dir(live.path(&path)));
    }
}

#[test]
fn opens_in_a_direction_that_a_file_has_not() {
    let Some(live) = Live::mount("open modes", "emu:ram=64M", "") else { return };
    for name in ["README", "info", "capabilities", "errors", "cache", "mem.map", "state", "vcpu/0/state"] {
        let open = |file: &mut OpenOptions| file.open(live.path(name));
        refused(&live, name, EACCES, "only be read", || open(OpenOptions::new().write(true)));
        refused(&live, name, EACCES, "only be read", || open(OpenOptions::new().write(true).truncate(true)));
        refused(&live, name, EACCES, "only be read", || open(OpenOptions::new().read(true).write(true)));
    }
    for name in ["ctl", "vcpu/0/ctl"] {
        refused(&live, name, EACCES, "only be written", || fs::read(live.path(name)));
    }
    assert_eq!(errno(OpenOptions::new().write(true).open(live.path("ram"))), libc::EISDIR);
    assert_eq!(errno(fs::read(live.path("mem/x"))), libc::ENOTDIR);
}

#[test]
fn the_tree_itself_can_not_be_changed() {
    let Some(live) = Live::mount("changes to the tree", "emu:ram=64M", "") else { return };
    let shape = || {
        live.command("find").arg(live.path("")).arg("-printf").arg("%p %M %U %G\\n").output().unwrap().stdout
    };
    let before = shape();
    let path = |name: &str| live.path(name);
    assert_eq!(errno(fs::write(path("new"), "x")), libc::ENOENT);
    assert_eq!(errno(fs::write(path("vcpu/0/regs/new"), "x")), libc::ENOENT);
    let exclusive = OpenOptions::new().write(true).create_new(true).open(path("mem"));
    assert_eq!(errno(exclusive), libc::EEXIST);
    assert_eq!(errno(fs::create_dir(path("made"))), libc::EPERM);
    let errors = live.errors();
    for line in ["path=new errno=ENOENT", "path=vcpu/0/regs/new errno=ENOENT", "path=made errno=EPERM"] {
        assert!(errors.iter().any(|error| error.contains(line)), "{line}: {errors:?}");
    }
    assert_eq!(errno(fs::remove_file(path("mem"))), libc::EPERM);
    assert_eq!(errno(fs::remove_dir(path("ram"))), libc::EPERM);
    assert_eq!(errno(fs::rename(path("mem"), path("memory"))), libc::EPERM);
    assert_eq!(errno(fs::hard_link(path("mem"), path("link"))), libc::EPERM);
    assert_eq!(errno(std::os::unix::fs::symlink("mem", path("link"))), libc::EPERM);
    let links = live.errors().iter().filter(|error| error.contains("path=link errno=EPERM")).count();
    assert_eq!(links, 2, "{:?}", live.errors());
    assert_eq!(errno(fs::set_permissions(path("mem"), fs::Permissions::from_mode(0o666))), libc::EPERM);
    assert_eq!(errno(std::os::unix::fs::chown(path("mem"), Some(1), Some(1))), libc::EPERM);
    // O_TMPFILE makes an inode without a name: not here.
    let unnamed = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(path(""));
    assert!([libc::EOPNOTSUPP, libc::EISDIR, libc::EPERM].contains(&errno(unnamed)));
    assert_eq!(shape(), before);
}

#[test]
fn many_refusals_leave_the_last_64() {
    let Some(live) = Live::mount("many refusals", "emu:ram=64M", "") else { return };
    for n in 0..80 {
        assert_eq!(errno(live.write("ctl", format!("junk{n}"))), libc::EINVAL);
    }
    let errors = live.errors();
    assert_eq!(errors.len(), 64);
    assert!(errors[0].contains("'junk16'") && errors[63].contains("'junk79'"), "{errors:?}");
    // A line stays a line whatever was written.
    assert_eq!(errno(live.write("ctl", "a\x1b[2J\u{202e}\r\n")), libc::EINVAL);
    assert_eq!(live.errors().len(), 64);
    assert!(!live.text("errors").contains('\x1b'));
}
