//! Registers of a running vCPU under KVM, without a stop of the VM.

use std::thread::sleep;
use std::time::{Duration, Instant};

use vmtree_api::x86::{Reg, Registers as Regs};
use vmtree_api::{Driver, RegId, RegisterSet, VcpuId};

use crate::bench::{open, read};
use crate::lab::{self, Vm};

/// Where a boot sector lies.
const START: u64 = 0x7c00;

/// A boot sector that counts in EAX for ever, copies it to six others, and leaves the guest at each turn. RIP tells which
/// of them have been copied.
const COUNTING: [u8; 25] = [
    0xfa, // cli
    0x66, 0x40, // 1: inc eax
    0x66, 0x89, 0xc3, // 3: mov ebx, eax
    0x66, 0x89, 0xc1, // 6: mov ecx, eax
    0x66, 0x89, 0xc2, // 9: mov edx, eax
    0x66, 0x89, 0xc6, // 12: mov esi, eax
    0x66, 0x89, 0xc7, // 15: mov edi, eax
    0x66, 0x89, 0xc5, // 18: mov ebp, eax
    0xe6, 0x80, // 21: out 0x80, al
    0xeb, 0xe8, // 23: jmp 1
];

/// A QEMU under KVM whose first vCPU counts and whose second one halts.
fn counting() -> Option<(tempfile::NamedTempFile, Vm)> {
    if !lab::have_qemu() || !lab::have_kvm() {
        return None;
    }
    let disk = tempfile::NamedTempFile::new().unwrap();
    let mut sector = [0; 512];
    sector[..COUNTING.len()].copy_from_slice(&COUNTING);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(disk.path(), sector).unwrap();
    let drive = format!("file={},format=raw,if=ide", disk.path().display());
    let mut vm = Vm::start(&["-accel", "kvm", "-m", "64M", "-smp", "2", "-drive", &drive]);
    let begun = Instant::now();
    while !(START..START + 25).contains(&crate::bench::shown(&vm.human("info registers -a"), 0, "EIP")) {
        assert!(begun.elapsed() < Duration::from_secs(60), "the boot sector does not run");
        sleep(Duration::from_millis(50));
    }
    Some((disk, vm))
}

fn some(driver: &dyn Driver, vcpu: u32, wanted: &[RegId]) -> Regs {
    match driver.registers().unwrap().read_some(VcpuId(vcpu), wanted).unwrap() {
        RegisterSet::X86_64(regs) => *regs,
        other => panic!("{other:?}"),
    }
}

/// All that KVM shares.
fn shared(driver: &dyn Driver) -> Vec<Reg> {
    let offers = driver.registers().unwrap().offers();
    let others = [Reg::Dr0, Reg::Dr1, Reg::Dr2, Reg::Dr3, Reg::Dr6, Reg::Dr7, Reg::KernelGsBase];
    offers.iter().filter_map(|offer| Reg::from_id(offer.id)).filter(|reg| !others.contains(reg)).collect()
}

/// Whether the seven counters are those of one instant.
fn whole(regs: &Regs) -> bool {
    let at = regs.rip.wrapping_sub(START);
    let counted = regs.gpr[0];
    // EBX ECX EDX ESI EDI EBP.
    let copied = [3, 1, 2, 6, 7, 5].into_iter().zip((3..).step_by(3));
    copied.into_iter().all(|(number, copy)| {
        let done = at == 1 || at > copy;
        regs.gpr[number] == if done { counted } else { counted.wrapping_sub(1) & 0xffff_ffff }
    })
}

#[test]
fn a_running_vcpu_is_read_without_a_stop_and_whole() {
    let Some((_disk, mut vm)) = counting() else { return };
    let driver = open(&vm);
    let registers = driver.registers().unwrap();
    let wanted: Vec<RegId> = shared(&*driver).into_iter().map(Reg::id).collect();
    assert_eq!(wanted.len(), 34);
    let (mut last, mut turns) = (0, 0);
    let begun = Instant::now();
    for round in 0..2000 {
        let regs = some(&*driver, 0, &wanted);
        assert!(whole(&regs), "round {round}: {regs:x?}");
        turns += u64::from(regs.gpr[0] != last);
        last = regs.gpr[0];
    }
    println!("2000 reads of a running vCPU: {:?} each", begun.elapsed() / 2000);
    // Readers beside a manager and by both ways: the VM always runs on.
    assert!(turns > 1000, "{turns}");
    assert_eq!(vm.human("info status").trim(), "VM status: running");
    let stops = registers.cost();
    println!("stopped for it: {stops:?}");
    let slow = read(&*driver, 0);
    assert!(whole(&slow), "{slow:x?}");
    assert!(registers.cost().is_some());
}

#[test]
fn both_ways_give_the_same_values() {
    let Some((_disk, mut vm)) = counting() else { return };
    let all = shared(&*open(&vm));
    let wanted: Vec<RegId> = all.iter().map(|reg| reg.id()).collect();
    // The second vCPU halts for ever. On a busy host the quick way may be given up, once and again.
    let without_a_stop = (0..20).find_map(|_| {
        let driver = open(&vm);
        let quick = some(&*driver, 1, &wanted);
        driver.registers().unwrap().cost().is_none().then_some((driver, quick))
    });
    let (driver, quick) = without_a_stop.expect("a read without a stop");
    let slow = read(&*driver, 1);
    for reg in all {
        assert_eq!(quick.get(reg), slow.get(reg), "{reg:?}");
    }
    // What is written is read at once, by each way.
    let write = |value| {
        let change = (Reg::Rsi.id(), vmtree_api::RegValue::Word(value));
        driver.registers().unwrap().write(VcpuId(1), &[change]).unwrap();
    };
    for value in 0..50 {
        write(value);
        assert_eq!(some(&*driver, 1, &[Reg::Rsi.id()]).gpr[6], value);
    }
    // One that stands still is read all the same, and stays so.
    vm.human("stop");
    assert_eq!(some(&*driver, 1, &[Reg::Rsi.id()]).gpr[6], 49);
    assert_eq!(vm.human("info status").trim(), "VM status: paused");
    vm.human("cont");
    assert!(driver.registers().unwrap().read_some(VcpuId(2), &wanted).is_err());
    vm.kill();
    vm.reap();
    assert!(driver.registers().unwrap().read_some(VcpuId(1), &wanted).is_err());
}
