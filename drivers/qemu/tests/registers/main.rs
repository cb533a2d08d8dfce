//! Registers and steps of a real QEMU: what the guest put there, and what QEMU's own monitor shows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod bench;
mod kvm;
#[path = "../../../../tests/labs/qemu/lab.rs"]
mod lab;
mod shared;
mod stub;

use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::Vm;
use vmtree_api::x86::Reg;
use vmtree_api::{Cancel, ErrorKind, RegValue, RunState, VcpuId};
use vmtree_guest::layout;
use vmtree_guest::mailbox::{self, Op, Site};

use bench::*;

#[test]
fn values_are_the_guests_own_and_qemus() {
    let Some(mut lab) = boot(2, &[]) else { return };
    let processes: Vec<u64> = (0..4).map(|slot| lab.word(mailbox::MAILBOX + 0x200 + 8 * slot)).collect();
    let kernel = lab.word(mailbox::MAILBOX + 0x48);
    for round in 0..200 {
        let vcpu = round % 2;
        let regs = lab.read(vcpu);
        assert!(regs.cr3 == kernel || processes.contains(&regs.cr3), "{:#x}", regs.cr3);
        let area = layout::VCPU_AREAS + u64::from(vcpu) * layout::AREA;
        assert_eq!(regs.gdtr.base, area + layout::vcpu::GDT);
        assert_eq!((regs.idtr.base, regs.idtr.limit), (area + layout::vcpu::IDT, 0xfff));
        assert_eq!(regs.tr.base, area + layout::vcpu::TSS);
        assert_eq!(regs.efer & 0x501, 0x501, "SCE LME LMA");
        assert!([regs.gs.base, regs.kernel_gs_base].contains(&area), "{regs:?}");
        // The traffic writes these, always the same.
        assert_eq!(regs.rflags & 2, 2);
        for (name, segment) in [("cs", regs.cs), ("ss", regs.ss)] {
            let expected = descriptor(&lab, regs.gdtr.base, segment.selector);
            assert_eq!((segment.base, segment.limit), (expected.base, expected.limit), "{name}");
            assert_eq!(segment.attr | 1, expected.attr | 1, "{name}: {segment:x?}");
        }
        let tss = descriptor(&lab, regs.gdtr.base, regs.tr.selector);
        // Bit 1 of the type is busy.
        assert_eq!(
            (regs.tr.base & 0xffff_ffff, regs.tr.limit, regs.tr.attr | 2),
            (tss.base, tss.limit, tss.attr | 2)
        );
    }
    assert_eq!(lab.state(), RunState::Running);
    let pause = lab.driver.execution().unwrap().pause().unwrap();
    let text = lab.vm.human("info registers -a");
    for vcpu in 0..2 {
        let regs = lab.read(vcpu);
        assert_eq!(regs, lab.read(vcpu), "paused, nothing moves");
        for (name, value) in [
            ("RAX", regs.gpr[0]),
            ("RBX", regs.gpr[3]),
            ("RSP", regs.gpr[4]),
            ("RBP", regs.gpr[5]),
            ("RDI", regs.gpr[7]),
            ("R8 ", regs.gpr[8]),
            ("R14", regs.gpr[14]),
            ("R15", regs.gpr[15]),
            ("RIP", regs.rip),
            ("RFL", regs.rflags),
            ("CR0", regs.cr0),
            ("CR2", regs.cr2),
            ("CR3", regs.cr3),
            ("CR4", regs.cr4),
            ("DR0", regs.dr[0]),
            ("DR3", regs.dr[3]),
            ("DR6", regs.dr[6]),
            ("DR7", regs.dr[7]),
            ("EFER", regs.efer),
        ] {
            assert_eq!(value, shown(&text, vcpu, name), "{name}");
        }
    }
    pause.resume().unwrap();
    assert!(lab.beats(0) && lab.beats(1));
    let missing = lab.driver.registers().unwrap();
    assert!(missing.offers().iter().all(|offer| offer.id != Reg::Lstar.id()), "nobody tells LSTAR");
    assert!(missing.msrs().err().unwrap().to_string().contains("MSRs by index"));
    assert_eq!(missing.read(VcpuId(2)).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(lab.state(), RunState::Running);
}

#[test]
fn values_that_the_guest_put_there_are_read() {
    let Some(lab) = boot(2, &[]) else { return };
    lab.mailbox.background(false, PATIENCE).unwrap();
    for (vcpu, level) in [(0, 3), (1, 5)] {
        lab.mailbox.order(vcpu, Op::WriteCr8, &[1, level], PATIENCE).unwrap();
        lab.mailbox.order(vcpu, Op::WriteDr, &[1, 2, 0x1234_5000 + level], PATIENCE).unwrap();
        lab.mailbox
            .order(vcpu, Op::WriteMsr, &[1, 0xc000_0102, 0xffff_8000_0000_0000 + level], PATIENCE)
            .unwrap();
        let regs = lab.read(vcpu as u32);
        assert_eq!((regs.cr8, regs.dr[2]), (level, 0x1234_5000 + level));
        let base = 0xffff_8000_0000_0000 + level;
        assert!([regs.kernel_gs_base, regs.gs.base].contains(&base), "{regs:x?}");
    }
    lab.mailbox.order(0, Op::WriteCr8, &[1, 0], PATIENCE).unwrap();
    // And the other way: what is written here, the guest reads.
    lab.write(1, &[(Reg::Cr8, 6)]).unwrap();
    let vmtree_guest::Outcome::Done([level, ..]) = lab.mailbox.order(1, Op::ReadCr8, &[1], PATIENCE).unwrap()
    else {
        panic!("no CR8")
    };
    assert_eq!(level, 6);
}

#[test]
fn several_registers_are_written_together_or_not_at_all() {
    let Some(mut lab) = boot(2, &[]) else { return };
    let pause = lab.driver.execution().unwrap().pause().unwrap();
    let before = lab.read(1);
    lab.write(1, &[(Reg::R14, 0x1122_3344_5566_7788), (Reg::Rbx, 7), (Reg::Cr2, 0xdead_0000)]).unwrap();
    let text = lab.vm.human("info registers -a");
    assert_eq!(shown(&text, 1, "R14"), 0x1122_3344_5566_7788);
    assert_eq!((shown(&text, 1, "RBX"), shown(&text, 1, "CR2")), (7, 0xdead_0000));
    assert_eq!(shown(&text, 0, "R14"), lab.read(0).gpr[14], "the other vCPU has its own");
    let changed = lab.read(1);
    for (reg, bad, kind) in [
        (Reg::Rip, 0x8000_0000_0000_0000, ErrorKind::Invalid),
        (Reg::Cr0, 0, ErrorKind::Invalid),
        (Reg::Cr8, 16, ErrorKind::Invalid),
        (Reg::Dr7, 0x400, ErrorKind::Unsupported),
        (Reg::Lstar, 0, ErrorKind::Unsupported),
    ] {
        let error = lab.write(1, &[(Reg::R14, 1), (reg, bad)]).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(lab.read(1), changed, "{error}");
    }
    lab.write(1, &[]).unwrap();
    lab.write(1, &[(Reg::R14, before.gpr[14]), (Reg::Rbx, before.gpr[3]), (Reg::Cr2, before.cr2)]).unwrap();
    assert_eq!(lab.read(1), before);
    pause.resume().unwrap();
    assert!(lab.beats(0) && lab.beats(1), "the guest goes on as if nothing had been");
}

#[test]
fn a_step_is_one_instruction_and_the_other_vcpu_stands_still() {
    let Some(lab) = boot(2, &[]) else { return };
    assert_eq!(lab.step(0, 1).unwrap_err().kind(), ErrorKind::Busy, "it runs");
    assert_eq!(lab.state(), RunState::Running);
    lab.mailbox.background(false, PATIENCE).unwrap();
    // Both vCPUs are at work, and no interrupt is needed for it.
    for vcpu in 0..2 {
        lab.mailbox.post(vcpu, Op::Spin, &[u64::MAX]).unwrap();
    }
    let spin = lab.mailbox.site(Site::Spin).unwrap();
    let deadline = Instant::now() + PATIENCE;
    // Paused in the loop, and not in the handler of a tick.
    let (pause, first, second) = loop {
        assert!(Instant::now() < deadline, "it never spins");
        let pause = lab.driver.execution().unwrap().pause().unwrap();
        let (first, second) = (lab.read(0), lab.read(1));
        if first.rip.abs_diff(spin) <= 16 && second.rip.abs_diff(spin) <= 16 {
            break (pause, first, second);
        }
        pause.resume().unwrap();
        sleep(Duration::from_millis(3));
    };
    // The loop is `sub` or `dec`, and a jump back: two steps are one round.
    assert_eq!(lab.step(0, 1).unwrap(), 1);
    let after = lab.read(0);
    assert_ne!(after.rip, first.rip);
    assert_eq!(lab.step(0, 1).unwrap(), 1);
    assert_eq!(lab.read(0).rip, first.rip, "one round");
    assert_eq!(lab.step(0, 200).unwrap(), 200);
    let rounds = lab.read(0);
    assert_eq!(rounds.rip, first.rip);
    let moved: Vec<u64> =
        (0..16).map(|at| first.gpr[at].wrapping_sub(rounds.gpr[at])).filter(|by| *by != 0).collect();
    assert_eq!(moved, [101], "100 rounds and one: {first:x?} {rounds:x?}");
    assert_eq!(lab.read(1), second, "the other stood still");
    assert_eq!(lab.step(1, 2).unwrap(), 2);
    assert_eq!(lab.read(0), rounds);
    assert_eq!((lab.read(1).rip, lab.step(1, 0).unwrap()), (second.rip, 0));
    assert_eq!(lab.step(2, 1).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(lab.state(), RunState::Paused);
    pause.resume().unwrap();
    assert_eq!(lab.state(), RunState::Running);
    // Two snapshots at once may leave the guest no time between them.
    let deadline = Instant::now() + PATIENCE;
    while lab.read(0).gpr == rounds.gpr {
        assert!(Instant::now() < deadline, "it does not go on");
    }
}

#[test]
fn a_step_over_hlt_waits_for_the_interrupt_and_a_dead_vcpu_ends_it() {
    let Some(lab) = boot(1, &[]) else { return };
    let pause = lab.driver.execution().unwrap().pause().unwrap();
    let hlt = lab.mailbox.site(Site::IdleHlt).unwrap();
    lab.step_to(0, hlt);
    assert_eq!(lab.step(0, 1).unwrap(), 1);
    assert_ne!(lab.read(0).rip, hlt);
    assert_eq!(lab.step(0, 50).unwrap(), 50);
    pause.resume().unwrap();
    assert!(lab.beats(0));
    lab.mailbox.order(0, Op::Stop, &[], PATIENCE).unwrap();
    sleep(Duration::from_millis(100));
    let pause = lab.driver.execution().unwrap().pause().unwrap();
    let begun = Instant::now();
    assert!(lab.step(0, 100).unwrap() <= 1, "halted for good");
    assert!(begun.elapsed() < Duration::from_secs(10));
    let cancel = Cancel::default();
    cancel.raise();
    assert_eq!(lab.driver.execution().unwrap().step(VcpuId(0), 100, &cancel).unwrap(), 0);
    pause.resume().unwrap();
    assert_eq!(lab.state(), RunState::Running);
}

#[test]
fn kvm_guests_are_read_written_and_stepped() {
    if !lab::have_qemu() || !lab::have_kvm() {
        return;
    }
    let mut vm = Vm::start(&["-accel", "kvm", "-m", "64M", "-smp", "2"]);
    sleep(Duration::from_secs(2));
    let driver = open(&vm);
    assert!(driver.facts().extra.contains(&("accelerator", "kvm".to_owned())));
    let pause = driver.execution().unwrap().pause().unwrap();
    let text = vm.human("info registers -a");
    let regs = read(&*driver, 1);
    // The firmware's 32-bit code.
    for (name, value) in [("EIP", regs.rip), ("EAX", regs.gpr[0]), ("CR0", regs.cr0), ("DR6", regs.dr[6])] {
        assert_eq!(value, shown(&text, 1, name), "{name}");
    }
    let write = |reg: Reg, value: u64| {
        driver
            .registers()
            .unwrap()
            .write(VcpuId(1), &[(Reg::Rbx.id(), RegValue::Word(9)), (reg.id(), RegValue::Word(value))])
    };
    write(Reg::Rdx, 0x1234).unwrap();
    assert_eq!(shown(&vm.human("info registers -a"), 1, "EDX"), 0x1234);
    // 32-bit code has no r14: QEMU drops what is written there, and all is put back.
    let error = driver
        .registers()
        .unwrap()
        .write(VcpuId(1), &[(Reg::Rbx.id(), RegValue::Word(77)), (Reg::R14.id(), RegValue::Word(5))])
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert_eq!(read(&*driver, 1).gpr[3], 9);
    let (old, other) = (read(&*driver, 0), read(&*driver, 1));
    let stepped = driver.execution().unwrap().step(VcpuId(0), 7, &Cancel::default()).unwrap();
    println!("stepped {stepped}: {:#x} to {:#x}", old.rip, read(&*driver, 0).rip);
    assert_eq!(stepped, 7);
    assert_eq!(read(&*driver, 1), other);
    write(Reg::Rdx, regs.gpr[2]).unwrap();
    pause.resume().unwrap();
    assert_eq!(vm.human("info status").trim(), "VM status: running");
}

#[test]
fn what_a_snapshot_costs() {
    let Some(lab) = boot(1, &[]) else { return };
    let mean = |what: &str| {
        lab.read(0);
        let begun = Instant::now();
        for _ in 0..200 {
            lab.read(0);
        }
        let each = begun.elapsed() / 200;
        println!("a snapshot of a {what} guest: {each:?}");
        each
    };
    let running = mean("running");
    let pause = lab.driver.execution().unwrap().pause().unwrap();
    let paused = mean("paused");
    let begun = Instant::now();
    assert_eq!(lab.step(0, 2000).unwrap(), 2000);
    println!("2000 steps: {:?}", begun.elapsed());
    pause.resume().unwrap();
    assert!(running < Duration::from_millis(100) && paused < Duration::from_millis(100));
}
