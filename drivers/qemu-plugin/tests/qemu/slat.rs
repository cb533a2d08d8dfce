//! Accesses to a page of guest-physical memory, and single steps.

use std::time::Instant;

use vmtree_agent::client::Client;
use vmtree_agent::{Event, Kind, Rule, Wanted, Way};
use vmtree_guest::mailbox::{Op, Site, header};

use crate::lab::{LONG, Lab, all, at_least, wanted, watch};

fn page(gpa: u64, access: u8) -> Wanted {
    let frame = gpa >> 12;
    Wanted { watches: Vec::new(), rules: vec![Rule { frames: frame..frame + 1, access, hold: false }] }
}

fn of(client: &Client, way: Way) -> Vec<Event> {
    all(client).into_iter().filter(|event| event.kind == Kind::Slat && event.way == way).collect()
}

#[test]
fn accesses_to_a_watched_page_are_told_and_others_are_not() {
    if !at_least((10, 0)) {
        return;
    }
    let lab = Lab::start(2, true);
    let client = lab.client();
    let data = lab.mailbox.header(header::DATA).unwrap();
    for (op, args, access, way, site) in [
        (Op::Read, [9, data + 0x40, 8, 0], 6, Way::Read, Site::Read8),
        (Op::Write, [9, data + 0x48, 0x11, 8], 5, Way::Write, Site::Write8),
    ] {
        client.watch(&page(data, access)).unwrap();
        lab.mailbox.order(1, op, &args, LONG).unwrap();
        let events = of(&client, way);
        assert_eq!(events.len(), 9, "{}", op.name());
        for event in events {
            assert_eq!((event.rip, event.a, event.b), (lab.mailbox.site(site).unwrap(), args[1], args[1]));
            assert_eq!(event.extra, 8);
        }
        // The page beside it.
        client.watch(&page(data + 0x10_0000, access)).unwrap();
        lab.mailbox.order(1, op, &args, LONG).unwrap();
        assert_eq!(all(&client), []);
    }
}

#[test]
fn fetches_from_a_watched_page_are_told() {
    if !at_least((10, 2)) {
        return;
    }
    let lab = Lab::start(2, true);
    let client = lab.client();
    let code = lab.mailbox.header(header::CODE).unwrap();
    // Translated before it is watched.
    lab.mailbox.order(1, Op::Exec, &[3, code], LONG).unwrap();
    for _ in 0..3 {
        client.watch(&page(code, 3)).unwrap();
        lab.mailbox.order(1, Op::Exec, &[5, code], LONG).unwrap();
        let events = of(&client, Way::Execute);
        assert_eq!(events.iter().filter(|event| event.rip == code).count(), 5, "{events:x?}");
        assert!(events.iter().all(|event| event.a == event.rip && event.vcpu == 1));
        client.watch(&wanted([])).unwrap();
        lab.mailbox.order(1, Op::Exec, &[5, code], LONG).unwrap();
        assert_eq!(all(&client), []);
    }
}

#[test]
fn steps_are_told_instruction_by_instruction_and_cost_nothing_when_they_are_over() {
    if !at_least((10, 0)) {
        return;
    }
    let lab = Lab::start(1, true);
    let client = lab.client();
    let spin = || {
        let start = Instant::now();
        lab.mailbox.order(0, Op::Spin, &[20_000_000], LONG).unwrap();
        start.elapsed()
    };
    let before = spin();
    client.watch(&wanted([watch(Kind::SingleStep, false)])).unwrap();
    lab.mailbox.order(0, Op::Spin, &[100], LONG).unwrap();
    client.watch(&wanted([])).unwrap();
    let events = all(&client);
    let spins = events.iter().filter(|event| event.rip == lab.mailbox.site(Site::Spin).unwrap()).count();
    assert_eq!(spins, 100);
    let after = spin();
    eprintln!("20 M spins: {before:?} before, {after:?} after steps");
    assert!(after < before * 3);
}
