//! Registers and MSRs.

use super::*;

fn registers(live: &Live) -> Vec<u8> {
    fs::read(live.path("vcpu/0/regs/raw")).unwrap()
}

#[test]
fn registers_refuse_garbage_and_set_nothing() {
    let Some(live) = Live::mount("registers", "emu:ram=64M", "") else { return };
    live.write("ctl", "pause").unwrap();
    let before = registers(&live);
    for (file, text, error, words) in [
        ("all", "rax=1 rbx=zz", EINVAL, "'zz'"),
        ("all", "rax=1 rbx=0x10000000000000000", ERANGE, "more than 64 bits"),
        ("all", "rax=1 cr0=0", EINVAL, "cr0"),
        ("all", "rax=1 rip=0x8000000000000000", EINVAL, "not canonical"),
        ("all", "rax=1 cs.sel=0x12345", ERANGE, "16 bits"),
        ("all", "rax=1 rax=2", EINVAL, "second time"),
        ("all", "rax=1 nosuch=1", EINVAL, "'nosuch'"),
        ("all", "rax=1 cs=8", EINVAL, "cs"),
        ("all", "rax=1 cs.nosuch=8", EINVAL, "nosuch"),
        ("all", "rax=", EINVAL, "rax"),
        ("all", "rax", EINVAL, "'rax' has no '='"),
        ("all", "rax = 1", EINVAL, "'rax' has no '='"),
        ("all", "", EINVAL, ""),
        ("all", " # nothing\n", EINVAL, "nothing is set"),
        ("all", "rax=-1", EINVAL, "'-1'"),
        ("all", "rax=1 cr3=0xffffffffffffffff", EINVAL, "cr3"),
        ("all", "rax=1 cr8=16", EINVAL, "cr8"),
        ("rax", "", EINVAL, ""),
        ("rax", "rax=1", EINVAL, "'rax=1'"),
        ("rax", "1 2", EINVAL, "'2'"),
        ("rax", "0x", EINVAL, "'0x'"),
        ("rax", "0x1_0000_0000_0000_0000", ERANGE, "64 bits"),
        ("rax", "0b2", EINVAL, "'0b2'"),
        ("cs", "8", EINVAL, "'8'"),
        ("cs", "sel=0x10000", ERANGE, "16 bits"),
        ("cs", "limit=0x100000000", ERANGE, "32 bits"),
        ("gdtr", "base=0x1000 limit=0x10000", ERANGE, "16 bits"),
        ("gdtr", "base=0x1000 limit", EINVAL, "limit"),
    ] {
        // An empty write(2) never reaches a filesystem.
        if text.is_empty() {
            assert_eq!(live.write(&format!("vcpu/0/regs/{file}"), text).unwrap(), 0);
            continue;
        }
        let path = format!("vcpu/0/regs/{file}");
        refused(&live, &path, error, words, || live.write(&path, text));
        assert_eq!(registers(&live), before, "{file}: {text}");
    }
    let long = format!("rax=1{}", " ".repeat(128 << 10));
    refused(&live, "vcpu/0/regs/all", E2BIG, "131077 bytes", || live.write("vcpu/0/regs/all", &long));
    assert_eq!(registers(&live), before);
}

#[test]
fn the_struct_of_registers_is_taken_whole_or_not_at_all() {
    let Some(live) = Live::mount("raw registers", "emu:ram=64M", "") else { return };
    live.write("ctl", "pause").unwrap();
    let before = registers(&live);
    // Magic, version, arch, length, a bit beyond the last register, padding of a table (docs/formats.md).
    for (at, words) in [(0, ""), (8, "version"), (10, ""), (12, ""), (31, ""), (394 + 16, "")] {
        let mut bad = before.clone();
        bad[32] ^= 1;
        bad[at] ^= 0x80;
        refused(&live, "vcpu/0/regs/raw", EINVAL, words, || live.write("vcpu/0/regs/raw", &bad));
        assert_eq!(registers(&live), before, "{at}");
    }
    for bytes in [1, 31, 32, 535] {
        let mut half = before[..bytes].to_vec();
        half[0] = b'V';
        refused(&live, "vcpu/0/regs/raw", EINVAL, "", || live.write("vcpu/0/regs/raw", &half));
    }
    let twice = [before.clone(), before.clone()].concat();
    refused(&live, "vcpu/0/regs/raw", EINVAL, "", || live.write("vcpu/0/regs/raw", &twice));
    assert_eq!(registers(&live), before);
    // And the good one is taken: rax is at 32.
    let mut good = before.clone();
    good[32..40].copy_from_slice(&7_u64.to_le_bytes());
    live.write("vcpu/0/regs/raw", &good).unwrap();
    assert_eq!(live.text("vcpu/0/regs/rax"), "0x0000000000000007\n");
}

#[test]
fn msrs_refuse_half_values_and_unknown_indices() {
    let Some(live) = Live::mount("msr", "emu:ram=64M", "") else { return };
    live.write("ctl", "pause").unwrap();
    let msr = live.open("vcpu/0/msr");
    let (efer, lstar, unknown) = (0xc000_0080, 0xc000_0082, 0x1_2345);
    let before = registers(&live);
    let path = "vcpu/0/msr";
    for bytes in [1, 4, 7, 9, 12] {
        let words = format!("{bytes} bytes; an MSR has 8");
        refused(&live, path, EINVAL, &words, || msr.read_at(&mut vec![0; bytes], lstar));
        refused(&live, path, EINVAL, &words, || msr.write_at(&vec![1; bytes], lstar));
    }
    refused(&live, path, EINVAL, "one value", || msr.write_at(&[1; 16], lstar));
    refused(&live, path, EIO, "no MSR 0x12345", || msr.read_at(&mut [0; 8], unknown));
    refused(&live, path, EIO, "no MSR 0x12345", || msr.write_at(&[0; 8], unknown));
    refused(&live, path, EINVAL, "0xc0000080", || msr.write_at(&[0xff; 8], efer));
    refused(&live, path, EINVAL, "0xc0000082", || msr.write_at(&(1_u64 << 63).to_le_bytes(), lstar));
    refused(&live, path, EINVAL, "0x100000000", || msr.write_at(&[0; 8], 1 << 32));
    assert_eq!(msr.read_at(&mut [0; 8], 1 << 32).unwrap(), 0);
    assert_eq!(errno(msr.read_at(&mut [0; 8], MOST - 7)).min(libc::EINVAL), libc::EINVAL);
    assert_eq!(registers(&live), before);
}
