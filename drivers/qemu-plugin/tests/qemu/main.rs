//! The plugin in a real QEMU, against what the conformance guest counts itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use lab::{LONG, Lab, all, at_least, wanted, watch};
use vmtree_agent::{Event, Kind, Way};
use vmtree_guest::mailbox::{Op, Site};

#[test]
fn every_watched_instruction_is_told_once_with_its_address_and_values() {
    if !at_least((10, 0)) {
        return;
    }
    let lab = Lab::start(2, true);
    let client = lab.client();
    eprintln!("{}", client.hello().name);
    let rows: &[(Op, &[u64], Kind, Way, Option<Site>, usize)] = &[
        (Op::WriteCr3, &[40], Kind::Cr3, Way::To, Some(Site::WriteCr3), 40),
        (Op::WriteCr0, &[10, 8], Kind::Cr0, Way::To, Some(Site::WriteCr0), 10),
        (Op::WriteCr4, &[10, 4], Kind::Cr4, Way::To, Some(Site::WriteCr4), 10),
        (Op::WriteCr8, &[10, 3], Kind::Cr8, Way::To, Some(Site::WriteCr8), 10),
        (Op::ReadCr8, &[10], Kind::Cr8, Way::From, Some(Site::ReadCr8), 10),
        (Op::WriteMsr, &[10, 0xc000_0102, 0x1234], Kind::Msr, Way::To, Some(Site::WriteMsr), 10),
        (Op::Int3, &[10], Kind::Breakpoint, Way::Once, Some(Site::Int3), 10),
        (Op::Cpuid, &[10, 1, 0], Kind::Cpuid, Way::Once, Some(Site::Cpuid), 10),
        (Op::WriteDr, &[10, 0, 0x1000], Kind::Dr, Way::To, None, 10),
        (Op::Out, &[10, 0x80, 0x5a], Kind::Io, Way::To, None, 10),
        (Op::In, &[10, 0x80], Kind::Io, Way::From, None, 10),
    ];
    for (op, args, kind, way, site, count) in rows {
        client.watch(&wanted([watch(*kind, false)])).unwrap();
        let before = lab.mailbox.counters(1).unwrap();
        let outcome = lab.mailbox.order(1, *op, args, LONG).unwrap();
        let after = lab.mailbox.counters(1).unwrap();
        let events: Vec<Event> =
            all(&client).into_iter().filter(|event| event.vcpu == 1 && event.way == *way).collect();
        eprintln!("{}: {outcome:?} {:?} {:x?}", op.name(), after.since(&before), events.first());
        assert_eq!(events.len(), *count, "{}", op.name());
        for event in &events {
            assert_eq!((event.kind, event.held()), (*kind, false));
            if let Some(site) = site {
                assert_eq!(event.rip, lab.mailbox.site(*site).unwrap(), "{}", op.name());
            }
        }
    }
}
