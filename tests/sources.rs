//! Bad SOURCEs, options and images: exit 32, one line that names the input, nothing mounted and no process left.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::path::Path;

use common::{Lab, lab, vmtree};

/// Tries to mount and checks the refusal; returns the line without the program's name.
fn refused(lab: &Lab, source: &str, options: &str, words: &str) -> String {
    let mut command = vmtree();
    command.arg("mount").arg(source).arg(&lab.mountpoint).args(["-o", options]);
    let output = command.output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(32), "{source} -o {options}: {told}");
    assert_eq!(told.lines().count(), 1, "{source} -o {options}: {told}");
    let line = told.trim_end().strip_prefix("vmtree: ").unwrap_or_else(|| panic!("{told}"));
    assert!(line.contains(words), "{source} -o {options}: {line}\nwanted: {words}");
    assert!(line.len() < 400 && !line.contains(['\u{1b}', '\0']), "{line}");
    assert!(output.stdout.is_empty() && lab.mounted().is_empty());
    line.to_owned()
}

#[test]
fn sources_that_make_no_sense() {
    let Some(lab) = lab("bad sources") else { return };
    for (source, words) in [
        ("", "DRIVER:TARGET"),
        ("emu", "DRIVER:TARGET"),
        (":", "DRIVER"),
        ("/dev/mem", "DRIVER:TARGET"),
        ("vmware:x", "'vmware'"),
        ("EMU:", "'EMU'"),
        ("emu:guest.elf", "guest.elf"),
        ("emu:colour=red", "colour"),
        ("emu:ram=64M,colour=red", "colour"),
        ("emu:ram=64M,ram=32M", "ram"),
        ("emu:ram=64M,,vcpus=1", "between two commas"),
        ("emu:ram=", "ram="),
        ("emu:ram=much", "ram=much"),
        ("emu:ram=64MB", "64MB"),
        ("emu:ram=-1", "-1"),
        ("emu:ram=0", "8M"),
        ("emu:ram=9M", "multiple of 2M"),
        ("emu:ram=1T", "256G"),
        ("emu:ram=99999999999999999999", "ram"),
        ("emu:vcpus=0", "1 to 64"),
        ("emu:vcpus=65", "1 to 64"),
        ("emu:vcpus=two", "two"),
        ("emu:seed=x", "seed=x"),
        ("emu:image=", "image=FILE"),
        ("emu:image=/no/such/file", "/no/such/file"),
        ("emu:image=/", "no regular file"),
        ("emu:image=/dev/zero", "no regular file"),
        ("emu:=1", "key"),
        ("qemu:/no/such/socket", "/no/such/socket"),
        ("qemu:pid=1", "1"),
        ("qemu:pid=0", "0"),
        ("qemu:pid=4194305", "4194305"),
        ("qemu:pid=zz", "zz"),
        ("qemu:name=no-such-vm", "no-such-vm"),
        ("emu:\u{1b}[2J=1", ""),
    ] {
        refused(&lab, source, "rw", words);
    }
    lab.assert_clean(&[]);
}

#[test]
fn options_that_make_no_sense() {
    let Some(lab) = lab("bad options") else { return };
    for (options, words) in [
        ("colour=red", "'colour'"),
        ("ro,hidden", "'hidden'"),
        ("ro=1", "ro takes no value"),
        ("remount", "unmount and mount again"),
        ("uid", "uid=VALUE"),
        ("uid=root", "uid"),
        ("uid=4294967295", "4294967295"),
        ("gid=-1", "gid"),
        ("mode=8", "mode"),
        ("mode=01000", "0 to 0777"),
        ("mode=", "mode"),
        ("holes=maybe", "neither zero nor eio"),
        ("cache=big", "cache"),
        ("cache_ms=1.5", "cache_ms"),
        ("cache_ms=99999999999999999999", "cache_ms"),
        ("reply_timeout=0", "3600"),
        ("reply_timeout=3601", "3600"),
        ("reply_timeout=nan", "reply_timeout"),
        ("threads=0", "1 to 64"),
        ("threads=65", "1 to 64"),
        ("threads=4,threads=x", "threads"),
    ] {
        refused(&lab, "emu:", options, words);
    }
    lab.assert_clean(&[]);
}

/// Where the second program header lies in the image.
const SECOND: usize = 120;

/// A small image that starts: code at 1 MiB, `jmp $`, and data at 2 MiB.
fn image() -> Vec<u8> {
    let mut data = vec![0; 0x202];
    data[..6].copy_from_slice(b"\x7fELF\x02\x01");
    data[6] = 1;
    put(&mut data, 16, &2_u16.to_le_bytes()); // ET_EXEC
    put(&mut data, 18, &62_u16.to_le_bytes()); // EM_X86_64
    put(&mut data, 20, &1_u32.to_le_bytes());
    put(&mut data, 24, &0x10_0000_u64.to_le_bytes()); // e_entry
    put(&mut data, 32, &64_u64.to_le_bytes()); // e_phoff
    put(&mut data, 52, &64_u16.to_le_bytes());
    put(&mut data, 54, &56_u16.to_le_bytes()); // e_phentsize
    put(&mut data, 56, &2_u16.to_le_bytes()); // e_phnum
    for (at, word) in [(64, 1), (68, 7), (SECOND, 1), (SECOND + 4, 6)] {
        put(&mut data, at, &u32::to_le_bytes(word)); // PT_LOAD and its rights
    }
    let first = [0x200_u64, 0x10_0000, 0x10_0000, 2, 0x1000, 0x1000];
    let second = [0x200_u64, 0x20_0000, 0x20_0000, 2, 0x1000, 0x1000];
    for (at, words) in [(72, first), (SECOND + 8, second)] {
        for (index, word) in words.iter().enumerate() {
            put(&mut data, at + index * 8, &word.to_le_bytes());
        }
    }
    put(&mut data, 0x200, b"\xeb\xfe");
    data
}

fn put(data: &mut [u8], at: usize, bytes: &[u8]) {
    data[at..at + bytes.len()].copy_from_slice(bytes);
}

#[test]
fn images_that_lie() {
    let Some(lab) = lab("bad images") else { return };
    let file = lab.folder.path().join("guest.elf");
    let source = format!("emu:ram=8M,image={}", file.display());
    let all = u64::MAX.to_le_bytes();
    let patches: &[(&str, usize, &[u8], &str)] = &[
        ("magic", 0, b"MZ", "no ELF"),
        ("32 bits", 4, &[1], "ELF64"),
        ("big-endian", 5, &[2], "ELF64"),
        ("no class", 4, &[0xff], "ELF64"),
        ("relocatable", 16, &[1], "ET_EXEC"),
        ("shared object", 16, &[3], "ET_EXEC"),
        ("core", 16, &[4], "ET_EXEC"),
        ("another machine", 18, &[183], "x86-64"),
        ("entry at 0", 24, &[0; 8], "entry"),
        ("entry past the segment", 24, &0x10_1000_u64.to_le_bytes(), "0x101000"),
        ("entry at the top", 24, &all, "entry"),
        ("headers past the end", 32, &0x1b0_u64.to_le_bytes(), "past the end of the file"),
        ("headers at the top", 32, &all, "past the end of the file"),
        ("headers wrap around", 32, &(u64::MAX - 63).to_le_bytes(), "past the end of the file"),
        ("headers too small", 54, &32_u16.to_le_bytes(), "56 bytes"),
        ("headers of no size", 54, &[0, 0], "56 bytes"),
        ("no headers", 56, &[0, 0], "PT_LOAD"),
        ("more headers than file", 56, &1000_u16.to_le_bytes(), "past the end"),
        ("65535 headers", 56, &[0xff, 0xff], "65535"),
        ("nothing at the entry", 64, &[4], "entry"),
        ("bytes past the end", 72, &0x201_u64.to_le_bytes(), "past the end of the file"),
        ("bytes at the top", 72, &all, "past the end of the file"),
        ("outside RAM", SECOND + 24, &0x80_0000_u64.to_le_bytes(), "ram=SIZE"),
        ("in the hole", SECOND + 24, &0xfee0_0000_u64.to_le_bytes(), "0xfee00000"),
        ("over the other one", SECOND + 24, &0x10_0fff_u64.to_le_bytes(), "over another one"),
        ("address at the top", SECOND + 24, &all, "address space"),
        ("address below the top", SECOND + 24, &(u64::MAX - 0x1000).to_le_bytes(), "ram=SIZE"),
        ("more in file than in memory", 104, &1_u64.to_le_bytes(), "more bytes in the file"),
        ("file size at the top", 96, &all, ""),
        ("memory size at the top", 104, &all, ""),
        ("larger than RAM", SECOND + 40, &(1_u64 << 40).to_le_bytes(), "ram=SIZE"),
        ("no memory at the entry", 104, &[0; 8], "entry"),
    ];
    for (what, at, bytes, words) in patches {
        let mut data = image();
        put(&mut data, *at, bytes);
        check(&lab, &file, &data, &source, words, what);
    }
    for (bytes, words) in
        [(0, "empty"), (1, "no ELF"), (4, "ends inside"), (63, "ends inside"), (64, "header 0")]
    {
        check(&lab, &file, &image()[..bytes], &source, words, "cut");
    }
    check(&lab, &file, &image()[..0x201], &source, "past the end of the file", "cut");
    check(&lab, &file, b"#!/bin/sh\n", &source, "no ELF", "script");
    lab.assert_clean(&[]);
}

fn check(lab: &Lab, file: &Path, data: &[u8], source: &str, words: &str, what: &str) {
    fs::write(file, data).unwrap();
    let line = refused(lab, source, "rw", words);
    assert!(line.starts_with("load image: "), "{what}: {line}");
}

#[test]
fn a_bad_image_is_named() {
    let Some(lab) = lab("bad image's name") else { return };
    let file = lab.folder.path().join("guest.elf");
    fs::write(&file, "no ELF").unwrap();
    refused(&lab, &format!("emu:image={}", file.display()), "rw", file.to_str().unwrap());
}

/// So that the cases above are lies, and not all images refused.
#[test]
fn the_image_that_the_lies_are_made_of_runs() {
    let Some(lab) = lab("good image") else { return };
    let file = lab.folder.path().join("guest.elf");
    fs::write(&file, image()).unwrap();
    let output = lab.run(&["mount", &format!("emu:ram=8M,image={}", file.display())]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read_to_string(lab.mountpoint.join("vcpu/0/regs/rip")).unwrap(), "0x0000000000100000\n");
    assert_eq!(fs::read_to_string(lab.mountpoint.join("state")).unwrap(), "running\n");
    lab.umount();
    lab.assert_clean(&[]);
}
