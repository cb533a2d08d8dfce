//! Registers of real QEMUs: compared to what the guest knows of itself and to what QEMU's own monitor shows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../../../tests/labs/qemu/lab.rs"]
mod lab;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use lab::Vm;
use vmtree_api::x86::{Reg, Registers as Regs, Segment};
use vmtree_api::{Cancel, Driver, ErrorKind, NoHost, RegValue, RegisterSet, RunState, Source, VcpuId};
use vmtree_guest::mailbox::{self, Counter, Op, Site};
use vmtree_guest::{Mailbox, layout};

const PATIENCE: Duration = Duration::from_secs(60);

struct Lab {
    vm: Vm,
    mailbox: Mailbox<File>,
    driver: Box<dyn Driver>,
}

/// The guest on `vcpus` vCPUs of TCG, with what `extra` adds.
fn boot(vcpus: u32, extra: &[&str]) -> Option<Lab> {
    if !lab::have_qemu() {
        return None;
    }
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), vmtree_guest::elf()).unwrap();
    let (smp, kernel) = (vcpus.to_string(), image.path().to_str().unwrap());
    let args = [
        "-accel",
        "tcg",
        "-m",
        "64M",
        "-machine",
        "pc,memory-backend=m",
        "-nic",
        "none", //
        "-object",
        "memory-backend-file,id=m,size=64M,share=on,mem-path=ram", //
        "-smp",
        &smp,
        "-kernel",
        kernel,
    ];
    let vm = Vm::start(&[&args, extra].concat());
    let ram = File::options().read(true).write(true).open(vm.folder().join("ram")).unwrap();
    let mailbox = Mailbox::new(ram);
    mailbox.wait_running(PATIENCE).unwrap();
    let driver = open(&vm);
    Some(Lab { vm, mailbox, driver })
}

fn open(vm: &Vm) -> Box<dyn Driver> {
    vmtree_qemu::open(Source::new("qemu", &vm.qmp(), Vec::new()), Arc::new(NoHost)).unwrap()
}

impl Lab {
    fn read(&self, vcpu: u32) -> Regs {
        read(&*self.driver, vcpu)
    }

    fn write(&self, vcpu: u32, changes: &[(Reg, u64)]) -> vmtree_api::Result<()> {
        let changes: Vec<_> = changes.iter().map(|(reg, value)| (reg.id(), RegValue::Word(*value))).collect();
        self.driver.registers().unwrap().write(VcpuId(vcpu), &changes)
    }

    fn step(&self, vcpu: u32, count: u64) -> vmtree_api::Result<u64> {
        self.driver.execution().unwrap().step(VcpuId(vcpu), count, &Cancel::default())
    }

    fn state(&self) -> RunState {
        self.driver.execution().unwrap().state().unwrap()
    }

    fn word(&self, gpa: u64) -> u64 {
        self.mailbox.word(gpa).unwrap()
    }

    /// Whether the guest's heart still beats.
    fn beats(&self, vcpu: u32) -> bool {
        let beat = || self.mailbox.counters(vcpu.into()).unwrap().get(Counter::Ticks);
        let before = beat();
        let deadline = Instant::now() + Duration::from_secs(3);
        while beat() == before && Instant::now() < deadline {
            sleep(Duration::from_millis(20));
        }
        beat() != before
    }

    /// Steps until rip is `site`, or gives up.
    fn step_to(&self, vcpu: u32, site: u64) {
        for _ in 0..20_000 {
            if self.read(vcpu).rip == site {
                return;
            }
            assert_eq!(self.step(vcpu, 1).unwrap(), 1);
        }
        panic!("vCPU {vcpu} never comes to {site:#x}");
    }
}

fn read(driver: &dyn Driver, vcpu: u32) -> Regs {
    let RegisterSet::X86_64(regs) = driver.registers().unwrap().read(VcpuId(vcpu)).unwrap() else {
        panic!("not x86-64")
    };
    *regs
}

/// A number that the monitor shows as `NAME=HEX` for vCPU `index`.
fn shown(text: &str, index: u32, name: &str) -> u64 {
    let vcpu = text.split("CPU#").find(|part| part.starts_with(&format!("{index}\n"))).unwrap();
    let (_, rest) = vcpu.split_once(&format!("{name}=")).unwrap_or_else(|| panic!("{name}: {vcpu}"));
    let digits: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
    u64::from_str_radix(&digits, 16).unwrap()
}

/// A segment as its descriptor in the guest's GDT has it, with the accessed bit set: loading sets it in the CPU.
fn descriptor(lab: &Lab, gdt: u64, selector: u16) -> Segment {
    let word = lab.word(gdt + u64::from(selector & !7));
    let base = word >> 16 & 0xff_ffff | word >> 32 & 0xff00_0000;
    let limit = (word & 0xffff | word >> 32 & 0xf_0000) as u32;
    let attr = (word >> 40 & 0xf0ff) as u16;
    let limit = if attr & 0x8000 != 0 { limit << 12 | 0xfff } else { limit };
    Segment { selector, base, limit, attr }
}

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
    while (0..2).any(|vcpu| lab.read(vcpu).rip.abs_diff(spin) > 16) {
        assert!(Instant::now() < deadline, "it never spins");
    }
    let pause = lab.driver.execution().unwrap().pause().unwrap();
    let (first, second) = (lab.read(0), lab.read(1));
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
    let moves = lab.read(0);
    assert_ne!(moves, lab.read(0));
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
fn the_gdbstub_is_private_and_closed_when_idle_and_at_the_end() {
    let Some(mut lab) = boot(1, &[]) else { return };
    let devices = |lab: &mut Lab| lab.vm.human("info chardev");
    assert!(!devices(&mut lab).contains("vmtree-gdb-"), "nothing is opened before its use");
    lab.read(0);
    let open = devices(&mut lab);
    let (_, path) = open.split_once("unix:/tmp/vmtree-gdb-").unwrap_or_else(|| panic!("{open}"));
    let folder = PathBuf::from(format!("/tmp/vmtree-gdb-{}", path.split('/').next().unwrap()));
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    let deadline = Instant::now() + Duration::from_secs(15);
    while folder.exists() || devices(&mut lab).contains("vmtree-gdb-") {
        assert!(Instant::now() < deadline, "{}", devices(&mut lab));
        sleep(Duration::from_millis(100));
    }
    assert!(lab.beats(0));
    lab.read(0);
    assert!(devices(&mut lab).contains("vmtree-gdb-"));
    let Lab { mut vm, driver, .. } = lab;
    drop(driver);
    assert!(!vm.human("info chardev").contains("vmtree-gdb-"));
    assert_eq!(vm.human("info status").trim(), "VM status: running");
}

#[test]
fn anothers_gdbstub_is_left_alone() {
    let gdb = "unix:theirs,server=on,wait=off";
    let Some(mut lab) = boot(1, &["-gdb", gdb]) else { return };
    let registers = lab.driver.registers().unwrap();
    assert!(registers.offers().iter().all(|offer| !offer.writable && offer.id != Reg::Cr8.id()));
    let regs = lab.read(0);
    assert_eq!(regs.efer & 0x501, 0x501);
    assert_eq!(lab.write(0, &[(Reg::R14, 1)]).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(lab.state(), RunState::Running);
    // A debugger that comes stops the VM; then nothing that we do is seen by it.
    let debugger = std::os::unix::net::UnixStream::connect(lab.vm.folder().join("theirs")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while lab.state() == RunState::Running {
        assert!(Instant::now() < deadline);
    }
    let paused = lab.read(0);
    assert_eq!(paused.rip, shown(&lab.vm.human("info registers -a"), 0, "RIP"));
    assert_eq!(lab.step(0, 1).unwrap_err().kind(), ErrorKind::Busy);
    lab.vm.human("cont");
    assert_eq!(lab.driver.registers().unwrap().read(VcpuId(0)).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(lab.state(), RunState::Running);
    assert!(lab.vm.human("info chardev").contains("theirs"));
    drop(debugger);
    // One that is opened after the mount is found at the first use.
    let Some(mut late) = boot(1, &[]) else { return };
    late.vm.human("gdbserver unix:late,server=on,wait=off");
    let error = late.driver.registers().unwrap().read(VcpuId(0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert!(error.to_string().contains("gdbserver none"), "{error}");
    assert_eq!(late.state(), RunState::Running);
    late.vm.human("gdbserver none");
    late.read(0);
}

#[test]
fn a_gdbstub_that_a_killed_vmtree_left_is_closed_and_a_living_ones_is_not() {
    let Some(mut lab) = boot(1, &[]) else { return };
    let folder = tempfile::Builder::new().prefix("vmtree-gdb-").tempdir_in("/tmp").unwrap();
    let line = format!("gdbserver unix:{}/s,server=on,wait=off", folder.path().display());
    let lock = File::open(folder.path()).unwrap();
    lock.lock().unwrap();
    lab.vm.human(&line);
    let read = |lab: &Lab| lab.driver.registers().unwrap().read(VcpuId(0));
    assert_eq!(read(&lab).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(lab.state(), RunState::Running);
    drop(lock);
    read(&lab).unwrap();
    assert!(!folder.path().exists(), "its folder goes too");
    assert_eq!(lab.state(), RunState::Running);
    assert!(lab.beats(0));
}

#[test]
fn many_readers_share_snapshots_beside_a_manager_who_pauses_and_resumes() {
    let Some(mut lab) = boot(2, &[]) else { return };
    let done = AtomicBool::new(false);
    let driver = &*lab.driver;
    let (reads, failures) = thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|reader| {
                let done = &done;
                scope.spawn(move || {
                    let (mut reads, mut failures) = (0_u32, 0_u32);
                    while !done.load(Ordering::Relaxed) {
                        match driver.registers().unwrap().read(VcpuId(reader % 2)) {
                            Ok(_) => reads += 1,
                            Err(error) => {
                                println!("{error}");
                                failures += 1;
                            }
                        }
                    }
                    (reads, failures)
                })
            })
            .collect();
        let mut lost = 0;
        let mut wrong = None;
        for round in 0..300_u32 {
            let resumes = round % 2 == 1;
            let (word, expected) =
                if resumes { ("cont", "VM status: running") } else { ("stop", "VM status: paused") };
            lab.vm.human(word);
            sleep(Duration::from_millis(u64::from(round * 7919 % 5)));
            if round % 10 >= 2 {
                continue;
            }
            // A stop that comes while we hold the VM stopped is seen by nobody; the manager finds it running and says
            // it again. A snapshot may be under way when it should run.
            let deadline = Instant::now() + Duration::from_secs(5);
            while lab.vm.human("info status").trim() != expected {
                if Instant::now() > deadline {
                    wrong = Some(format!("round {round}: not {expected}"));
                    break;
                }
                if !resumes {
                    lost += 1;
                    lab.vm.human(word);
                }
            }
        }
        println!("{lost} stops said again");
        done.store(true, Ordering::Relaxed);
        let counts: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        assert_eq!(wrong, None);
        (counts.iter().map(|count| count.0).sum::<u32>(), counts.iter().map(|count| count.1).sum::<u32>())
    });
    println!("{reads} reads, {failures} failures");
    assert!(reads > 50);
    assert!(failures * 10 < reads, "{failures} failures");
    assert_eq!(lab.state(), RunState::Running, "as the manager left it");
    assert!(lab.beats(0) && lab.beats(1));
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
