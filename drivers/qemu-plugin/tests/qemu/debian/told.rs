//! What is told of a Debian guest, against what QEMU's log, the kernel and a process say.

use std::collections::BTreeMap;
use std::fs;

use vmtree_agent::client::Failure;
use vmtree_agent::{Code, Event, Kind, Subject, Way, flag};

use super::guest::{BOOT, Guest};
use crate::lab::{release, soon, wanted, watch};

/// A delivery: vector, instruction, privilege level, whether by INT, error code, CR2.
type Delivery = (u64, u64, u64, bool, Option<u64>, Option<u64>);

/// What QEMU logs of a delivery with `-d int`, which it does in protected and long mode.
fn logged(line: &str) -> Option<Delivery> {
    let word = |key: &str| {
        let (_, rest) = line.split_once(&format!(" {key}="))?;
        u64::from_str_radix(rest.split(' ').next()?, 16).ok()
    };
    let (vector, by_int) = (word("v")?, word("i")? == 1);
    let coded = !by_int && matches!(vector, 8 | 10..=14 | 17 | 21);
    let cr2 = (vector == 14 && !by_int).then(|| word("CR2")).flatten();
    Some((vector, word("pc")?, word("cpl")?, by_int, coded.then(|| word("e")).flatten(), cr2))
}

/// What is told of a delivery, where the vector is known; 0 stands for one that is not.
fn told(event: &Event) -> Delivery {
    let error = (event.flags & flag::ERROR != 0).then_some(u64::from(event.extra));
    let cr2 = (event.flags & flag::CR2 != 0).then_some(event.b);
    // INT n and INT3.
    let by_int = matches!(event.index >> 8, 3 | 5);
    ((event.index & 0xff).into(), event.rip, event.cpl.into(), by_int, error, cr2)
}

/// What QEMU has logged so far.
fn log(guest: &Guest) -> Vec<Delivery> {
    let log = fs::read(guest.vm.folder().join("log")).unwrap();
    String::from_utf8_lossy(&log).lines().filter_map(logged).collect()
}

fn by_vector<'a>(deliveries: impl IntoIterator<Item = &'a Delivery>) -> BTreeMap<u64, u64> {
    let mut counts = BTreeMap::new();
    deliveries.into_iter().for_each(|delivery| *counts.entry(delivery.0).or_default() += 1);
    counts
}

#[test]
fn each_delivery_of_a_boot_is_the_one_that_qemu_logs() {
    let rows: [(&str, &[&str]); 2] = [("", &[]), ("pti=on", &["-smp", "2", "-cpu", "Skylake-Client-v1"])];
    for (line, args) in rows {
        let args = [args, &["-d", "int", "-D", "log"]].concat();
        let Some(mut guest) = Guest::start(&[Kind::Interrupt], line, &args) else { return };
        let events = guest.told_all();
        let log = log(&guest);
        // The firmware's have no page tables, and are not in the log.
        let (kernel, firmware): (Vec<Event>, _) = events.iter().partition(|event| event.cr3 != 0);
        assert!(events.iter().all(|event| event.flags & flag::NO_VECTOR == 0), "{events:x?}");
        let kernel: Vec<_> = kernel.iter().map(told).collect();
        eprintln!("'{line}': {} of the firmware, {:?}", firmware.len(), by_vector(&kernel));
        assert_eq!(by_vector(&kernel), by_vector(&log), "'{line}'");
        let other = kernel.iter().zip(&log).find(|(told, logged)| told != logged);
        assert_eq!(other, None, "'{line}'");
        assert!(kernel.len() > 1000 && kernel.iter().any(|told| (told.0, told.2) == (14, 3)));
        // INT 0x10, which says the firmware's own first line.
        assert!(firmware.iter().map(told).any(|told| (told.0, told.3) == (0x10, true)));
    }
}

#[test]
fn deliveries_by_a_table_that_nobody_saw_loaded_are_told_without_their_vectors() {
    let Some(mut first) = Guest::start(&[Kind::Interrupt], "", &[]) else { return };
    // Much is still to come.
    first.vm.await_serial("probe touches", BOOT);
    first.vm.human("stop");
    first.vm.human("migrate file:state");
    soon("its state is written", || first.vm.human("info migrate").contains("completed"));
    let state = format!("file:{}", first.vm.folder().join("state").display());
    let args = ["-d", "int", "-D", "log", "-incoming", &state];
    let mut second = Guest::start(&[Kind::Interrupt], "", &args).unwrap();
    // It came paused.
    soon("it goes on", || {
        second.vm.human("cont").is_empty() && second.vm.human("info status").contains("running")
    });
    second.vm.await_serial("guest says", BOOT);
    let (events, log) = (second.told(), log(&second));
    assert!(
        events.len() > 100 && events.iter().all(|event| event.flags & flag::NO_VECTOR != 0),
        "{events:x?}"
    );
    // All but the vector, and CR2, is told as ever.
    let events: Vec<_> = events.iter().map(told).collect();
    let log: Vec<_> =
        log.iter().map(|(_, pc, level, by_int, error, _)| (0, *pc, *level, *by_int, *error, None)).collect();
    assert_eq!(events.len(), log.len());
    let other = events.iter().zip(&log).find(|(told, logged)| told != logged);
    assert_eq!(other, None);
    assert!(events.iter().any(|told| told.4.is_some()));
}

/// A value that the kernel says that it wrote to an MSR.
fn traced(line: &str) -> Option<(u32, u64)> {
    let (index, value) = line.strip_prefix("write_msr: ")?.split_once(", value ")?;
    Some((u32::from_str_radix(index, 16).ok()?, u64::from_str_radix(value.trim(), 16).ok()?))
}

fn of(events: &[Event], kind: Kind) -> impl DoubleEndedIterator<Item = &Event> {
    events.iter().filter(move |event| event.kind == kind)
}

/// LSTAR, and what the kernel traces of the MSRs that it writes: all from early on, but for a few writes in assembly.
fn compare_msrs(guest: &Guest, events: &[Event]) {
    let lstar = of(events, Kind::Msr).filter(|event| event.index == 0xc000_0082);
    let lstar: Vec<_> = lstar.map(|event| event.b).collect();
    assert_eq!(lstar, [guest.vm.said("entry_SYSCALL_64")]);
    let serial = guest.vm.serial();
    let writes: Vec<_> = serial.lines().filter_map(traced).collect();
    let mut told = of(events, Kind::Msr).map(|event| (event.index, event.b));
    let missing = writes.iter().find(|write| !told.any(|told| told == **write));
    assert_eq!(missing, None, "{writes:x?}");
    assert!(writes.len() > 20, "{serial}");
}

const TRACE: &str = "trace_event=msr:write_msr";

#[test]
fn what_is_told_of_a_debian_guest_is_what_it_says_itself() {
    let kinds = [Kind::Interrupt, Kind::Cr3, Kind::Msr];
    let Some(mut guest) = Guest::start(&kinds, TRACE, &[]) else { return };
    let events = guest.told_all();
    compare_msrs(&guest, &events);

    let (touched, gpa) = (guest.vm.said("probe touches 0x"), guest.vm.said("probe has gpa"));
    let faults: Vec<_> = of(&events, Kind::Interrupt)
        .filter(|event| event.flags & flag::CR2 != 0 && event.b == touched)
        .collect();
    let [fault] = *faults else { panic!("{faults:x?}") };
    // A write, from user mode, to what is not there.
    assert_eq!((fault.index & 0xff, fault.extra, fault.cpl), (14, 6, 3));
    assert_eq!(fault.rip, guest.vm.said("probe touches it at"));

    let last = of(&events, Kind::Cr3).rfind(|event| event.seq < fault.seq).unwrap();
    assert_eq!(last.b, fault.cr3, "{last:x?} {fault:x?}");
    assert_eq!(guest.vm.walk(fault.cr3, touched), gpa + (touched & 0xfff));
    let text = guest.vm.pmemsave(gpa, 4096);
    let text = &text[(touched & 0xfff) as usize..][..12];
    assert_eq!(text, b"Vmtree probe");
    assert_eq!(cr3_in_user_mode(&mut guest), fault.cr3);
}

/// CR3 while the guest's process runs its own code, as QEMU shows it.
fn cr3_in_user_mode(guest: &mut Guest) -> u64 {
    for _ in 0..1000 {
        guest.vm.human("cont");
        std::thread::sleep(std::time::Duration::from_millis(20));
        guest.vm.human("stop");
        let registers = guest.vm.human("info registers");
        let register = |name: &str| {
            let (_, rest) = registers.split_once(&format!("{name}=")).unwrap();
            u64::from_str_radix(rest.split([' ', '\n']).next().unwrap(), 16).unwrap()
        };
        // The shell lies elsewhere.
        if registers.contains("CPL=3") && (0x40_0000..0x40_3000).contains(&register("RIP")) {
            return register("CR3");
        }
    }
    panic!("the process does not run");
}

#[test]
fn a_qemu_that_tells_no_interrupts_says_so_and_tells_the_rest() {
    if !((10, 0)..(10, 2)).contains(&release()) {
        eprintln!(
            "SKIPPED a_qemu_that_tells_no_interrupts_says_so_and_tells_the_rest: it takes QEMU 10.0 or 10.1"
        );
        return;
    }
    let Some(mut guest) = Guest::start(&[Kind::Cr3, Kind::Msr], TRACE, &[]) else { return };
    let events = guest.told_all();
    compare_msrs(&guest, &events);
    let cr3 = cr3_in_user_mode(&mut guest);
    assert!(of(&events, Kind::Cr3).any(|event| event.b == cr3), "{cr3:#x}");
    let (touched, gpa) = (guest.vm.said("probe touches 0x"), guest.vm.said("probe has gpa"));
    assert_eq!(guest.vm.walk(cr3, touched), gpa + (touched & 0xfff));

    let why = "does not tell of interrupts; it does from QEMU 10.2 on";
    let offers = &guest.client.hello().offers;
    let offer = offers
        .iter()
        .find(|offer| offer.kind == Kind::Interrupt && offer.subject == Subject::Seen(Way::Once));
    assert!(offer.unwrap().missing.as_ref().unwrap().contains(why));
    let Err(Failure::Refused(refusal)) = guest.client.watch(&wanted([watch(Kind::Interrupt, false)])) else {
        panic!()
    };
    assert!(refusal.code == Code::Unsupported && refusal.why.contains(why), "{refusal:?}");
}
