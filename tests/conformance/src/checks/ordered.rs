//! Memory that we write and the guest reads, and the other way round.

use std::os::unix::fs::FileExt;

use vmtree_guest::Outcome;
use vmtree_guest::mailbox::{Counter, Op, header};

use crate::{Check, Checked, Vm};

pub const CHECKS: &[Check] = &[
    Check {
        name: "memory-ordered-accesses",
        needs: &[],
        about: "all sizes and page borders, read and written by each vCPU",
        run: accesses,
    },
    Check {
        name: "memory-ordered-copies",
        needs: &[],
        about: "pages that the guest fills and copies, byte by byte",
        run: copies,
    },
    Check {
        name: "memory-user",
        needs: &[],
        about: "what ring 3 writes by its own mapping is at the page's gpa",
        run: user,
    },
    Check {
        name: "memory-counts",
        needs: &[],
        about: "orders change the guest's counters by exactly what was ordered",
        run: counts,
    },
];

/// RAM that the guest never uses: it ends at 4 MiB.
const FREE: u64 = 0x50_0000;
/// Offsets there: aligned, odd, across a page and across a large page.
const PLACES: &[u64] = &[0, 0x11, 0xffe, 0x1fff, 0xf_fffd];

fn write(vm: &Vm, gpa: u64, bytes: &[u8]) -> Checked {
    vm.mailbox.bytes().write_all_at(bytes, gpa).map_err(|error| format!("write mem at {gpa:#x}: {error}"))
}

/// A value whose bytes all differ, another one each time.
fn value(n: u64) -> u64 {
    0x0123_4567_89ab_cdef_u64.rotate_left(4 * (n % 16) as u32) ^ n << 32
}

fn accesses(vm: &Vm) -> Checked {
    let scratch = vm.header(header::SCRATCH)?;
    let places = PLACES.iter().map(|place| FREE + place).chain([scratch, scratch + 0xff8]);
    let mut n = 0;
    for (gpa, vcpu) in places.zip((0..vm.vcpus).cycle()) {
        for size in [1, 2, 4, 8_u64] {
            n += 1;
            let mask = u64::MAX >> (64 - 8 * size);
            let (ours, theirs, around) = (value(n) & mask, value(n + 7) & mask, [0x5a; 24]);
            write(vm, gpa - 8, &around)?;
            write(vm, gpa, &ours.to_le_bytes()[..size as usize])?;
            let read = vm.order(vcpu, Op::Read, &[1, gpa, size])?;
            same!(read, ours, "what the guest read at {gpa:#x}, {size} bytes");
            vm.order(vcpu, Op::Write, &[1, gpa, theirs, size])?;
            let mut wanted = around;
            wanted[8..8 + size as usize].copy_from_slice(&theirs.to_le_bytes()[..size as usize]);
            same!(vm.mem(gpa - 8, 24)?, wanted, "what the guest wrote at {gpa:#x}, {size} bytes");
        }
    }
    Ok(())
}

fn copies(vm: &Vm) -> Checked {
    const LEN: usize = 0x3005;
    let (from, to, filled) = (FREE + 0x1_0003, FREE + 0x2_0ffe, FREE + 0x3_0001);
    let pattern: Vec<u8> = (0..LEN as u64).map(|n| (n * 0x9e37_79b9 >> 13) as u8).collect();
    write(vm, from, &pattern)?;
    write(vm, to - 1, &[0x11; LEN + 2])?;
    vm.order(0, Op::Copy, &[1, to, from, LEN as u64])?;
    let copy = vm.mem(to - 1, LEN + 2)?;
    ensure!(
        copy.get(1..LEN + 1) == Some(&pattern[..]),
        "the guest's copy of {LEN:#x} bytes differs from ours"
    );
    same!([copy.first(), copy.last()], [Some(&0x11), Some(&0x11)], "the bytes around the copy");
    let last = vm.vcpus - 1;
    vm.order(last, Op::Fill, &[1, filled, 0xa5, LEN as u64])?;
    ensure!(vm.mem(filled, LEN)?.iter().all(|byte| *byte == 0xa5), "what vCPU {last} filled is not all 0xa5");
    Ok(())
}

fn user(vm: &Vm) -> Checked {
    let (data, gva) = (vm.header(header::DATA)?, vm.header(header::USER_DATA)?);
    for vcpu in 0..vm.vcpus {
        let (at, ours, theirs) = (0x40 + 8 * vcpu, value(vcpu), value(vcpu + 3));
        let before = vm.word(data + at)?;
        write(vm, data + at, &ours.to_le_bytes())?;
        same!(vm.order(vcpu, Op::UserRead, &[1, gva + at, 8])?, ours, "what ring 3 of vCPU {vcpu} read");
        vm.order(vcpu, Op::UserWrite, &[1, gva + at, theirs, 8])?;
        same!(vm.word(data + at)?, theirs, "what ring 3 of vCPU {vcpu} wrote");
        write(vm, data + at, &before.to_le_bytes())?;
        let cr2 = vm.header(header::USER_UNMAPPED)?;
        let fault = vm.outcome(vcpu, Op::UserRead, &[1, cr2, 8])?;
        ensure!(
            matches!(fault, Outcome::Faulted { vector: 14, cr2: found, .. } if found == cr2),
            "a read of an unmapped page: {fault:x?}"
        );
    }
    Ok(())
}

fn counts(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let code = vm.header(header::CODE)?;
    let orders: &[(Op, &[u64], Counter, u64)] = &[
        (Op::WriteCr3, &[40, 0], Counter::Cr3Writes, 40),
        (Op::WriteCr8, &[7, 0], Counter::Cr8Writes, 7),
        (Op::ReadMsr, &[9, 0xc000_0082], Counter::MsrReads, 9),
        (Op::Int3, &[11], Counter::Breakpoints, 11),
        (Op::Invlpg, &[5, code], Counter::Invlpgs, 5),
        (Op::SoftInterrupt, &[3], Counter::SoftInterrupts, 3),
    ];
    for vcpu in 0..vm.vcpus {
        for (op, args, counter, wanted) in orders {
            let before = vm.counters(vcpu)?;
            vm.order(vcpu, *op, args)?;
            let mut change = vm.counters(vcpu)?.since(&before);
            // These go on by themselves.
            change.retain(|counter, _| ![Counter::Heartbeat, Counter::Ticks].contains(counter));
            same!(
                change,
                [(*counter, *wanted), (Counter::Orders, 1)].into(),
                "counts of {} on vCPU {vcpu}",
                op.name()
            );
        }
    }
    Ok(())
}
