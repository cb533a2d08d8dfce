//! The plugin in a real QEMU, against what the conformance guest counts itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bad;
mod death;
mod debian;
mod driver;
mod flags;
mod interrupts;
mod lab;
mod slat;
mod verdicts;

use std::collections::BTreeMap;

use lab::{LONG, Lab, all, at_least, wanted, watch};
use vmtree_agent::{Event, Kind, Way};
use vmtree_guest::mailbox::{Counter, Op, Site};

/// An order, its arguments, and the events that it is.
type Row = (Op, &'static [u64], Kind, Way, Option<Site>, usize);

const ROWS: &[Row] = &[
    (Op::WriteCr3, &[40], Kind::Cr3, Way::To, Some(Site::WriteCr3), 40),
    (Op::WriteCr0, &[10, 8], Kind::Cr0, Way::To, Some(Site::WriteCr0), 10),
    (Op::WriteCr4, &[10, 4], Kind::Cr4, Way::To, Some(Site::WriteCr4), 10),
    (Op::WriteCr8, &[10, 3], Kind::Cr8, Way::To, Some(Site::WriteCr8), 10),
    (Op::ReadCr8, &[10], Kind::Cr8, Way::From, Some(Site::ReadCr8), 10),
    (Op::WriteMsr, &[10, 0xc000_0102, 0x1234], Kind::Msr, Way::To, Some(Site::WriteMsr), 10),
    (Op::Int3, &[10], Kind::Breakpoint, Way::Once, Some(Site::Int3), 10),
    (Op::Cpuid, &[10, 1, 0], Kind::Cpuid, Way::Once, Some(Site::Cpuid), 10),
    (Op::WriteDr, &[10, 0, 0x1000], Kind::Dr, Way::To, None, 10),
    (Op::Out, &[10, 0x80, 0x5a, 1], Kind::Io, Way::To, None, 10),
    (Op::In, &[10, 0x80, 1], Kind::Io, Way::From, None, 10),
];

/// What the guest counts of an order on vCPU 1, but for what its clock does.
fn counted(lab: &Lab, op: Op, args: &[u64]) -> BTreeMap<Counter, u64> {
    let before = lab.mailbox.counters(1).unwrap();
    lab.mailbox.order(1, op, args, LONG).unwrap();
    let mut counted = lab.mailbox.counters(1).unwrap().since(&before);
    counted.retain(|counter, _| !matches!(counter, Counter::Heartbeat | Counter::Ticks));
    counted
}

#[test]
fn every_watched_instruction_is_told_once_and_the_guest_sees_nothing_of_it() {
    if !at_least((10, 0)) {
        return;
    }
    let (lab, alone) = (Lab::start(2, true), Lab::start(2, false));
    let client = lab.client();
    eprintln!("{}", client.hello().name);
    for (op, args, kind, way, site, count) in ROWS {
        client.watch(&wanted([watch(*kind, false)])).unwrap();
        assert_eq!(counted(&lab, *op, args), counted(&alone, *op, args), "{}", op.name());
        let events: Vec<Event> =
            all(&client).into_iter().filter(|event| event.vcpu == 1 && event.way == *way).collect();
        assert_eq!(events.len(), *count, "{}", op.name());
        for event in &events {
            assert_eq!((event.kind, event.held()), (*kind, false));
            if let Some(site) = site {
                assert_eq!(event.rip, lab.mailbox.site(*site).unwrap(), "{}", op.name());
            }
        }
        check_values(&lab, &events);
    }
}

/// That each event has the values that the order has, and continues where the one before it left off.
fn check_values(lab: &Lab, events: &[Event]) {
    let changes = events.iter().zip(events.iter().skip(1));
    match events.first().unwrap() {
        Event { kind: Kind::Cr0 | Kind::Cr3 | Kind::Cr4 | Kind::Dr | Kind::Msr, .. } => {
            for (one, next) in changes {
                assert_eq!(one.b, next.a, "{one:x?}");
            }
        }
        Event { kind: Kind::Cpuid, index, extra, .. } => assert_eq!((*index, *extra), (1, 0)),
        Event { kind: Kind::Io, way, index, extra, a, .. } => {
            assert_eq!((*index, *extra, *a), (0x80, 1, if *way == Way::To { 0x5a } else { 0 }));
        }
        Event { kind: Kind::Cr8, way, a, b, .. } => assert_eq!(if *way == Way::To { *b } else { *a }, 3),
        Event { flags, a, rip, .. } => assert!(*flags & vmtree_agent::flag::GPA == 0 || a == rip),
    }
    match events.first().unwrap() {
        Event { kind: Kind::Cr3, .. } => {
            let processes = [2, 3].map(|process| lab.mailbox.process_cr3(process / 2, process % 2).unwrap());
            assert!(events.iter().all(|event| processes.contains(&event.b)), "{processes:x?}");
        }
        Event { kind: Kind::Cr0, a, b, .. } => assert_eq!(a ^ b, 8),
        Event { kind: Kind::Cr4, a, b, .. } => assert_eq!(a ^ b, 4),
        Event { kind: Kind::Msr, index, b, .. } => assert_eq!((*index, *b), (0xc000_0102, 0x1234)),
        Event { kind: Kind::Dr, index, b, .. } => assert_eq!((*index, *b), (0, 0x1000)),
        _ => {}
    }
}
