//! The same guest, told to do the same, raises the same events in the same order on the built-in machine and on QEMU with
//! the plugin: that keeps either honest.
//!
//! It takes a QEMU of 11.0 or later and the plugin: `cargo build -p vmtree-qemu-plugin` puts it beside the program.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "labs/qemu/lab.rs"]
mod qemu;

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use common::live::{Live, skip};
use qemu::Vm;
use vmtree_guest::layout::{self, PROCESS_AREAS, USER_IMAGE, process};
use vmtree_guest::mailbox::{Op, header};
use vmtree_guest::{Mailbox, Outcome};

const LONG: Duration = Duration::from_secs(40);
const KERNEL_GS_BASE: u64 = 0xc000_0102;

/// What is watched: all that both tell, but for the clock's interrupts.
const FILES: &[&str] = &[
    "cr0",
    "cr3",
    "cr4",
    "cr8",
    "xcr0",
    "dr,dir=to",
    "msr,index=0xc0000102,dir=to",
    "breakpoint",
    "cpuid",
    "io",
    "descriptor",
    "interrupt",
];

/// What is ordered: every kind, faults, memory, and ring 3. Left out is what TCG does unlike a processor: no #GP at a base that is no
/// canonical address, and the fault of an instruction that reads and writes is told as a read's.
fn orders(guest: &Mailbox<File>) -> Vec<(Op, Vec<u64>)> {
    let header = |offset| guest.header(offset).unwrap();
    let (scratch, code, guard) = (header(header::SCRATCH), header(header::CODE), header(header::GUARD));
    vec![
        (Op::WriteCr3, vec![6, 0]),
        (Op::WriteCr0, vec![4, 8]),
        (Op::WriteCr4, vec![4, 4]),
        (Op::ReadCr, vec![2, 0]),
        (Op::ReadCr, vec![2, 3]),
        (Op::ReadCr, vec![2, 4]),
        (Op::ReadCr8, vec![3]),
        (Op::Clts, vec![2]),
        (Op::Lmsw, vec![2, 0xb]),
        (Op::WriteMsr, vec![3, KERNEL_GS_BASE, 0x1234_5000]),
        (Op::WriteMsr, vec![2, KERNEL_GS_BASE, 0xffff_8000_0000_1000]),
        (Op::WriteDr, vec![2, 0, 0x1000]),
        (Op::WriteDr, vec![2, 3, 0x2000]),
        (Op::Int3, vec![3]),
        (Op::SoftInterrupt, vec![2]),
        (Op::Cpuid, vec![2, 7, 0]),
        (Op::Out, vec![2, 0x80, 0x5a, 1]),
        (Op::Out, vec![1, 0x80, 0x1234_5678, 4]),
        (Op::In, vec![2, 0x80, 2]),
        (Op::LoadTable, vec![2, 0, 0x3f]),
        (Op::LoadTable, vec![2, 1, 0xfff]),
        (Op::LoadTable, vec![1, 3, 0x30]),
        (Op::StoreTable, vec![1, 1]),
        (Op::Read, vec![1, guard + 8, 8]),
        (Op::Write, vec![1, guard + 0x10, 1, 4]),
        (Op::Exec, vec![3, code]),
        (Op::Write, vec![3, scratch + 0x40, 7, 8]),
        (Op::Read, vec![3, scratch + 0x40, 4]),
        (Op::UserSyscall, vec![5]),
        (Op::UserInt3, vec![2]),
        (Op::UserSelfModify, vec![3]),
        (Op::UserRead, vec![1, layout::USER_SUPERVISOR, 8]),
        (Op::UserWrite, vec![1, layout::USER_UNMAPPED + 0x18, 1, 1]),
    ]
}

/// A guest of one vCPU that does nothing by itself: no background, and no tick comes through.
fn quiet(live: &Live) -> Mailbox<File> {
    let guest = Mailbox::new(live.open("mem"));
    guest.wait_running(LONG).unwrap();
    guest.background(false, LONG).unwrap();
    guest.order(0, Op::WriteCr8, &[1, 15], LONG).unwrap();
    guest
}

/// All records of some event files, in the order of their numbers, without what differs from machine to machine: the number
/// itself, and the time.
struct Watched(Vec<File>);

impl Watched {
    fn open<'a>(live: &Live, names: impl IntoIterator<Item = &'a str>) -> Self {
        // O_NONBLOCK.
        let open = |name| {
            OpenOptions::new().read(true).custom_flags(0o4000).open(live.path(&format!("events/{name}")))
        };
        Self(
            names
                .into_iter()
                .map(|name| open(name).unwrap_or_else(|error| panic!("{name}: {error}")))
                .collect(),
        )
    }

    fn records(mut self) -> Vec<String> {
        let (mut records, mut last) = (Vec::new(), Instant::now());
        let mut buf = vec![0; 1 << 20];
        while last.elapsed() < Duration::from_millis(500) {
            for file in &mut self.0 {
                while let Ok(got @ 1..) = file.read(&mut buf) {
                    last = Instant::now();
                    records.extend(std::str::from_utf8(&buf[..got]).unwrap().lines().map(numbered));
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        records.sort();
        records.into_iter().map(|(_, record)| record).collect()
    }
}

fn numbered(line: &str) -> (u64, String) {
    let mut words = line.split(' ');
    let seq = words.next().unwrap().strip_prefix("seq=").unwrap_or_else(|| panic!("{line}"));
    assert!(words.next().unwrap().starts_with("t="), "{line}");
    (seq.parse().unwrap(), words.collect::<Vec<_>>().join(" "))
}

/// What a machine tells of the orders, and how they end.
fn trace(live: &Live) -> (Vec<String>, Vec<Outcome>) {
    let guest = quiet(live);
    let page = |gpa: u64| format!("gpa={gpa:#x}-{:#x}", gpa + 0x1000);
    let slat = [
        // All that ring 3 executes, instruction by instruction, and what it writes and then executes.
        format!("slat,access=x,{}", page(USER_IMAGE)),
        format!("slat,access=wx,{}", page(PROCESS_AREAS + process::CODE)),
        format!("slat,access=wx,{}", page(guest.header(header::CODE).unwrap())),
        format!("slat,access=rw,{}", page(guest.header(header::SCRATCH).unwrap())),
    ];
    // Once before: lazy pages and stale registers are then as the second time finds them.
    let orders = orders(&guest);
    let perform = || {
        let ends = orders.iter().map(|(op, args)| (*op, guest.order(0, *op, args, LONG).unwrap()));
        // Each is a processor of its own.
        ends.filter(|(op, _)| *op != Op::Cpuid).map(|(_, end)| end).collect()
    };
    let _: Vec<Outcome> = perform();
    let watched = Watched::open(live, FILES.iter().copied().chain(slat.iter().map(String::as_str)));
    let outcomes = perform();
    (watched.records(), outcomes)
}

#[test]
fn the_built_in_machine_and_qemu_tell_the_same_of_the_same_guest() {
    const TEST: &str = "the_built_in_machine_and_qemu_tell_the_same_of_the_same_guest";
    let plugin = match qemu::plugin(env!("CARGO_BIN_EXE_vmtree")) {
        Ok(plugin) => plugin,
        Err(why) => return skip(TEST, why),
    };
    let folder = tempfile::tempdir().unwrap();
    let elf = folder.path().join("guest.elf");
    fs::write(&elf, vmtree_guest::elf()).unwrap();
    let args = ["-accel", "tcg", "-kernel", elf.to_str().unwrap(), "-plugin", &plugin];
    let vm = Vm::start(&[&args[..], qemu::SHARED].concat());
    let Some(on_qemu) = Live::mount(TEST, &format!("qemu:{}", vm.qmp()), "") else { return };
    let Some(on_emu) = Live::mount(TEST, "emu:vcpus=1,ram=64M", "") else { return };
    let (found, wanted) = (trace(&on_qemu), trace(&on_emu));
    assert_eq!(found.1, wanted.1, "how the orders end");
    let differ = found.0.iter().zip(&wanted.0).position(|(one, other)| one != other);
    if let Some(index) = differ {
        let near = index.saturating_sub(3)..index + 4;
        panic!(
            "record {index} differs:\nQEMU {:#?}\nemu {:#?}",
            found.0.get(near.clone()),
            wanted.0.get(near)
        );
    }
    assert_eq!(found.0.len(), wanted.0.len());
    assert!(found.0.len() > 200, "{} records", found.0.len());
}
