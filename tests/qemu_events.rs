//! Events of a stock QEMU through vmtree's plugin, over a real mount, with the conformance guest.
//!
//! It takes a QEMU of 11.0 or later and the plugin: `cargo build -p vmtree-qemu-plugin` puts it beside the program.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "labs/qemu/lab.rs"]
mod qemu;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use common::live::{Live, skip};
use common::{kill, processes, wait_until};
use qemu::Vm;
use vmtree_guest::mailbox::{Counter, Op, Site};
use vmtree_guest::{Mailbox, Outcome};

const LONG: Duration = Duration::from_secs(40);

/// A VM with the guest and the plugin, its mount, and its guest's mailbox.
///
/// It ends in this order: what is open, the mount, the VM.
struct Lab {
    mailbox: Mailbox<File>,
    live: Live,
    vm: Vm,
}

fn lab(test: &str, vcpus: u32) -> Option<Lab> {
    let plugin = qemu::plugin(env!("CARGO_BIN_EXE_vmtree")).inspect_err(|why| skip(test, why)).ok()?;
    let folder = tempfile::tempdir().unwrap();
    let elf = folder.path().join("guest.elf");
    fs::write(&elf, vmtree_guest::elf()).unwrap();
    let args = ["-accel", "tcg", "-kernel", elf.to_str().unwrap(), "-smp", &vcpus.to_string()];
    let vm = Vm::start(&[&args, qemu::SHARED, &["-plugin", &plugin]].concat());
    let live = Live::mount(test, &format!("qemu:{}", vm.qmp()), "reply_timeout=20")?;
    let mailbox = Mailbox::new(live.open("mem"));
    mailbox.wait_running(LONG).unwrap();
    mailbox.background(false, LONG).unwrap();
    Some(Lab { vm, live, mailbox })
}

/// The lines of an open event file, read on a thread, as its reads wait.
fn lines(file: File) -> Receiver<String> {
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(file).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn word<'a>(line: &'a str, key: &str) -> &'a str {
    let found = line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("no {key}= in {line}"))
}

fn number(line: &str, key: &str) -> u64 {
    let text = word(line, key);
    let hex = text.strip_prefix("0x");
    hex.map_or_else(|| text.parse().unwrap(), |hex| u64::from_str_radix(hex, 16).unwrap())
}

/// A file that controls: its lines, and where to answer them.
fn control(live: &Live, name: &str) -> (Receiver<String>, File) {
    let file = live.open(name);
    (lines(file.try_clone().unwrap()), file)
}

fn answer(file: &mut File, line: &str, verdict: &str) -> std::io::Result<()> {
    file.write_all(format!("{} {verdict}\n", number(line, "seq")).as_bytes())
}

#[test]
fn what_happens_is_told_and_the_capabilities_say_what_can_be() {
    let Some(lab) = lab("what_happens_is_told_and_the_capabilities_say_what_can_be", 2) else { return };
    let capabilities = lab.live.text("capabilities");
    assert!(capabilities.lines().any(|line| line == "event cr3 to yes"), "{capabilities}");
    assert!(lab.live.text("info").lines().any(|line| line.starts_with("agent QEMU")));
    let told = lines(File::open(lab.live.path("events/cr3,vcpu=1")).unwrap());
    lab.mailbox.order(1, Op::WriteCr3, &[5], LONG).unwrap();
    let processes = [0, 1].map(|process| lab.mailbox.process_cr3(1, process).unwrap());
    for _ in 0..5 {
        let line = told.recv_timeout(LONG).unwrap();
        assert_eq!(number(&line, "rip"), lab.mailbox.site(Site::WriteCr3).unwrap(), "{line}");
        assert!(processes.contains(&number(&line, "new")), "{line} {processes:x?}");
    }
    // A write is told after it took place, so it can be trapped and not be kept from happening.
    assert!(capabilities.lines().any(|line| line.starts_with("event slat deny no: ")), "{capabilities}");
    assert!(capabilities.lines().any(|line| line.starts_with("event cr8 value no: ")), "{capabilities}");
    let wall = lab.live.write("views/0/access", "0x400000-0x401000 r-- deny\n").unwrap_err();
    assert_eq!(wall.raw_os_error(), Some(libc::EOPNOTSUPP), "{:?}", lab.live.errors());
    lab.live.write("views/0/access", "0x400000-0x401000 r--\n").unwrap();
    lab.live.write("views/0/access", "reset\n").unwrap();
    // LSTAR, set to what it is.
    let told = lines(File::open(lab.live.path("events/msr,index=0xc0000082")).unwrap());
    let lstar = lab.mailbox.header(vmtree_guest::mailbox::header::LSTAR).unwrap();
    lab.mailbox.order(0, Op::WriteMsr, &[2, 0xc000_0082, lstar], LONG).unwrap();
    for _ in 0..2 {
        let line = told.recv_timeout(LONG).unwrap();
        assert_eq!((number(&line, "index"), number(&line, "new")), (0xc000_0082, lstar), "{line}");
    }
}

#[test]
fn a_held_vcpu_is_answered_and_its_registers_are_had() {
    let Some(lab) = lab("a_held_vcpu_is_answered_and_its_registers_are_had", 2) else { return };
    let (told, mut answers) = control(&lab.live, "events/msr,vcpu=1,index=0xc0000102");
    // KERNEL_GS_BASE.
    let seq = lab.mailbox.post(1, Op::WriteMsr, &[2, 0xc000_0102, 0x5000]).unwrap();
    let line = told.recv_timeout(LONG).unwrap();
    assert_eq!(number(&line, "new"), 0x5000);
    // Its registers, without a stop of the VM.
    let rip = lab.live.text("vcpu/1/regs/rip");
    assert_eq!(u64::from_str_radix(rip.trim().trim_start_matches("0x"), 16).unwrap(), number(&line, "rip"));
    let busy = |file: &str| fs::read(lab.live.path(file)).unwrap_err().raw_os_error();
    assert!(lab.live.text("vcpu/1/regs/cs").contains("sel"), "{}", lab.live.text("vcpu/1/regs/cs"));
    assert_eq!(busy("vcpu/0/regs/rip"), Some(libc::EBUSY));
    lab.live
        .write("vcpu/1/regs/r15", "0x1234\n")
        .unwrap_or_else(|error| panic!("{error}: {:?}", lab.live.errors()));
    assert_eq!(
        lab.live.text("vcpu/1/regs/r15").trim().trim_start_matches("0x").trim_start_matches('0'),
        "1234"
    );
    // No address of this processor's: it stays held.
    assert!(answer(&mut answers, &line, "value=0x8000000000000000").is_err());
    answer(&mut answers, &line, "deny").unwrap();
    let line = told.recv_timeout(LONG).unwrap();
    answer(&mut answers, &line, "value=0x3000").unwrap();
    lab.mailbox.outcome(1, Op::WriteMsr, seq, LONG).unwrap();
    drop((told, answers));
    let outcome = lab.mailbox.order(1, Op::ReadMsr, &[1, 0xc000_0102], LONG).unwrap();
    let Outcome::Done([base, ..]) = outcome else { panic!("{outcome:?}") };
    assert_eq!(base, 0x3000);
    // All of one that runs.
    assert!(lab.live.text("vcpu/0/regs/all").contains("rflags"));
}

#[test]
fn the_flags_of_a_held_vcpu_are_had_where_qemu_has_them_whole() {
    let Some(lab) = lab("the_flags_of_a_held_vcpu_are_had_where_qemu_has_them_whole", 2) else { return };
    let at = lab.mailbox.header(vmtree_guest::mailbox::header::CODE).unwrap() + 0x400;
    // mov r9d, 1; cmp r9, 2; jmp to the next instruction, or a nop of that length; out 0x80, al; ret
    let code = |jump: [u8; 2]| {
        [&[0x41, 0xb9, 1, 0, 0, 0, 0x49, 0x83, 0xf9, 2], &jump[..], &[0xe6, 0x80, 0xc3]].concat()
    };
    let (told, mut answers) = control(&lab.live, "events/io,vcpu=1");
    for (jump, whole) in [([0xeb, 0], true), ([0x66, 0x90], false)] {
        let at = at + u64::from(jump[0]) * 0x10;
        lab.live.open("mem").write_all_at(&code(jump), at).unwrap();
        let seq = lab.mailbox.post(1, Op::Exec, &[1, at]).unwrap();
        let line = told.recv_timeout(LONG).unwrap();
        let flags = fs::read_to_string(lab.live.path("vcpu/1/regs/rflags"));
        if whole {
            let flags = flags.unwrap();
            // CF, PF, AF and SF of 1 - 2.
            let flags = u64::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap();
            assert_eq!(flags & 0x8d5, 0x95, "{flags:#x}");
            let all = lab.live.text("vcpu/1/regs/all");
            assert!(all.contains(&format!("rflags={flags:#018x}")) && all.contains("dr7="), "{all}");
        } else {
            assert_eq!(flags.unwrap_err().raw_os_error(), Some(libc::EBUSY));
        }
        answer(&mut answers, &line, "continue").unwrap();
        lab.mailbox.outcome(1, Op::Exec, seq, LONG).unwrap();
    }
}

#[test]
fn what_only_the_monitor_has_is_refused_at_an_interrupt() {
    let Some(lab) = lab("what_only_the_monitor_has_is_refused_at_an_interrupt", 2) else { return };
    let (told, mut answers) = control(&lab.live, "events/interrupt,vcpu=1,vector=3");
    let seq = lab.mailbox.post(1, Op::Int3, &[1]).unwrap();
    let line = told.recv_timeout(LONG).unwrap();
    let begun = Instant::now();
    let busy = |file: &str| fs::read(lab.live.path(file)).unwrap_err().raw_os_error();
    assert_eq!((busy("vcpu/1/regs/cs"), busy("vcpu/1/regs/all")), (Some(libc::EBUSY), Some(libc::EBUSY)));
    assert!(lab.live.text("vcpu/1/regs/rax").starts_with("0x"));
    // There is one monitor for all vCPUs, and one lock.
    assert_eq!(busy("vcpu/0/regs/all"), Some(libc::EBUSY), "{:?}", lab.live.errors());
    lab.live.write("ctl", "pause\n").unwrap();
    lab.live.write("ctl", "resume\n").unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    answer(&mut answers, &line, "continue").unwrap();
    lab.mailbox.outcome(1, Op::Int3, seq, LONG).unwrap();
}

#[test]
fn a_pause_while_an_event_is_held_comes_true_with_its_verdict() {
    let Some(mut lab) = lab("a_pause_while_an_event_is_held_comes_true_with_its_verdict", 2) else { return };
    let (told, mut answers) = control(&lab.live, "events/cr3,vcpu=1");
    let seq = lab.mailbox.post(1, Op::WriteCr3, &[1]).unwrap();
    let line = told.recv_timeout(LONG).unwrap();
    let begun = Instant::now();
    lab.live.write("ctl", "pause\n").unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(lab.live.text("state"), "paused\n");
    // The other one stands still.
    thread::sleep(Duration::from_millis(100));
    let beats = || lab.mailbox.counters(0).unwrap().get(Counter::Ticks);
    let before = beats();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(beats(), before);
    // No step may wait for the held one.
    let step = lab.live.write("vcpu/0/ctl", "step 1\n").unwrap_err();
    assert_eq!(step.raw_os_error(), Some(libc::EBUSY));
    answer(&mut answers, &line, "continue").unwrap();
    wait_until("QEMU has stopped", || lab.vm.human("info status").contains("paused"));
    assert_eq!(lab.live.text("state"), "paused\n");
    lab.live.write("ctl", "resume\n").unwrap_or_else(|error| panic!("{error}: {:?}", lab.live.errors()));
    lab.mailbox.outcome(1, Op::WriteCr3, seq, LONG).unwrap();
    assert!(lab.vm.human("info status").contains("running"));

    // Given back before the verdict: the VM goes on soon after it.
    let seq = lab.mailbox.post(1, Op::WriteCr3, &[1]).unwrap();
    let line = told.recv_timeout(LONG).unwrap();
    lab.live.write("ctl", "pause\n").unwrap();
    lab.live.write("ctl", "resume\n").unwrap();
    answer(&mut answers, &line, "continue").unwrap();
    lab.mailbox.outcome(1, Op::WriteCr3, seq, LONG).unwrap();
    assert_eq!(lab.live.text("state"), "running\n");
}

/// The daemon that serves this mount.
fn daemon(live: &Live) -> u32 {
    let path = live.path("");
    let path = path.to_str().unwrap().trim_end_matches('/').to_owned();
    let serves = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.starts_with("vmtree\0serve\0") && line.contains(&path)
    };
    processes().find(serves).unwrap()
}

#[test]
fn a_killed_daemon_lets_four_held_vcpus_go_within_a_second() {
    const TEST: &str = "a_killed_daemon_lets_four_held_vcpus_go_within_a_second";
    for (paused, resumed) in [(false, false), (true, false), (true, true)] {
        let Some(Lab { mut vm, live, mailbox }) = lab(TEST, 4) else { return };
        // The guest's memory for afterwards, past the mount.
        let (told, answers) = control(&live, "events/cr3");
        let before: Vec<_> =
            (0..4).map(|vcpu| mailbox.counters(vcpu).unwrap().get(Counter::Cr3Writes)).collect();
        for vcpu in 0..4 {
            mailbox.post(vcpu, Op::WriteCr3, &[50]).unwrap();
        }
        let mut held: Vec<_> = (0..4).map(|_| number(&told.recv_timeout(LONG).unwrap(), "vcpu")).collect();
        held.sort_unstable();
        assert_eq!(held, [0, 1, 2, 3]);
        if paused {
            live.write("ctl", "pause\n").unwrap();
        }
        if resumed {
            live.write("ctl", "resume\n").unwrap();
        }
        let pid = daemon(&live);
        let begun = Instant::now();
        kill(pid, 9);
        let counters =
            |vcpu: u64| vmtree_guest::mailbox::COUNTERS + vcpu * vmtree_guest::mailbox::COUNTERS_SIZE;
        let writes = |vm: &mut Vm, vcpu| {
            let at = vmtree_guest::mailbox::MAILBOX + counters(vcpu) + Counter::Cr3Writes as u64 * 8;
            vm.xp(at)
        };
        let done = |vm: &mut Vm| (0..4_u64).all(|vcpu| writes(vm, vcpu) >= before[vcpu as usize] + 50);
        // A pause is given back by the guardian, which has to reach QEMU first.
        let limit = if paused { Duration::from_secs(10) } else { Duration::from_secs(1) };
        while !done(&mut vm) {
            assert!(begun.elapsed() < limit, "paused {paused} resumed {resumed}");
            thread::sleep(Duration::from_millis(5));
        }
        eprintln!("paused {paused} resumed {resumed}: the guest goes on after {:?}", begun.elapsed());
        assert!(vm.human("info status").contains("running"));
        drop((answers, told, mailbox));
        live.gone();
    }
}

#[test]
fn events_end_with_qemu_and_a_second_mount_is_told_of_the_first() {
    let Some(mut lab) = lab("events_end_with_qemu_and_a_second_mount_is_told_of_the_first", 1) else {
        return;
    };
    let output = lab
        .live
        .command(env!("CARGO_BIN_EXE_vmtree"))
        .args(["info", &format!("qemu:{}", lab.vm.qmp())])
        .output();
    let output = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(output.contains("agent no: ") && output.contains("another mount"), "{output}");
    let mut file = OpenOptions::new().read(true).custom_flags(0).open(lab.live.path("events/cr3")).unwrap();
    lab.vm.kill();
    lab.vm.reap();
    let mut rest = String::new();
    // The end, or the error of a mount that is gone.
    let _ = file.read_to_string(&mut rest);
    drop((file, lab.mailbox));
    lab.live.gone();
}
