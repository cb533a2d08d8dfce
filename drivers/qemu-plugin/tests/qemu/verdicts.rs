//! What is answered to held events, and what the guest then has.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vmtree_agent::client::{Client, Failure};
use vmtree_agent::{Action, Code, Event, Inject, Kind, Reg, Rule, Subject, Verdict, Wanted};
use vmtree_guest::Outcome;
use vmtree_guest::mailbox::{Op, Site};

use crate::lab::{LONG, Lab, all, at_least, release, wanted, watch};

/// Orders `op` on vCPU 1 with `kind` held, answers its events with `verdict`, and gives the outcome.
fn answered(
    lab: &Lab,
    client: &Arc<Client>,
    (op, args): (Op, &[u64]),
    kind: Kind,
    verdict: &Verdict,
) -> Outcome {
    client.watch(&wanted([watch(kind, true)])).unwrap();
    let seq = lab.mailbox.post(1, op, args).unwrap();
    let event = next(client);
    assert_eq!((event.kind, event.held()), (kind, true));
    client.answer(event.seq, verdict).unwrap();
    client.watch(&wanted([])).unwrap();
    while let Some(event) = client.next(Duration::from_millis(5)).unwrap() {
        client.answer(event.seq, &Verdict::Continue).unwrap();
    }
    lab.mailbox.outcome(1, op, seq, LONG).unwrap()
}

/// The next event on vCPU 1; others continue.
fn next(client: &Client) -> Event {
    loop {
        let event = client.next(LONG).unwrap().unwrap();
        if event.vcpu == 1 {
            return event;
        }
        client.answer(event.seq, &Verdict::Continue).unwrap();
    }
}

fn results(outcome: Outcome) -> [u64; 4] {
    match outcome {
        Outcome::Done(results) => results,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_held_vcpu_shows_its_registers_and_continues() {
    if !at_least((10, 0)) {
        return;
    }
    let lab = Lab::start(2, true);
    let client = lab.client();
    client.watch(&wanted([watch(Kind::Cr3, true)])).unwrap();
    let seq = lab.mailbox.post(1, Op::WriteCr3, &[400]).unwrap();
    let event = next(&client);
    let registers = client.registers(event.seq).unwrap();
    let rip = registers.iter().find(|(reg, _)| *reg == Reg::Rip).unwrap().1;
    assert_eq!((rip, rip), (event.rip, lab.mailbox.site(Site::WriteCr3).unwrap()));
    assert!(registers.iter().any(|(_, value)| *value == event.b));
    client.answer(event.seq, &Verdict::Continue).unwrap();
    let mut trips = Vec::new();
    for _ in 1..400 {
        let start = Instant::now();
        let event = next(&client);
        trips.push(start.elapsed());
        client.answer(event.seq, &Verdict::Continue).unwrap();
    }
    trips.sort();
    eprintln!("held cr3: median {:?}, p99 {:?}", trips[200], trips[395]);
    lab.mailbox.outcome(1, Op::WriteCr3, seq, LONG).unwrap();
}

#[test]
fn what_a_version_lacks_is_told_and_refused() {
    if !at_least((10, 0)) {
        return;
    }
    let lab = Lab::start(2, true);
    let client = lab.client();
    let why_of = |kind, subject| {
        let row = client.hello().offers.iter().find(|row| row.kind == kind && row.subject == subject);
        row.unwrap().missing.clone()
    };
    let why = |subject| why_of(Kind::Cr3, subject);
    assert!(why_of(Kind::Cr8, Subject::Takes(Action::Value)).unwrap().contains("lock"));
    assert!(why_of(Kind::Slat, Subject::Takes(Action::Deny)).unwrap().contains("after"));
    assert!(why_of(Kind::Io, Subject::Takes(Action::Value)).unwrap().contains("port"));
    assert_eq!(why(Subject::Takes(Action::Continue)), None);
    assert_eq!(why(Subject::Takes(Action::Deny)).is_none(), release() >= (11, 0));
    assert_eq!(why(Subject::Takes(Action::Set)).is_none(), release() >= (10, 2));
    client.watch(&wanted([watch(Kind::Cr3, true)])).unwrap();
    let seq = lab.mailbox.post(1, Op::WriteCr3, &[1]).unwrap();
    let event = next(&client);
    let code = |verdict| match client.answer(event.seq, &verdict) {
        Err(Failure::Refused(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    };
    if release() < (11, 0) {
        assert_eq!(code(Verdict::Deny), Code::Unsupported);
    }
    assert_eq!(code(Verdict::Set(vec![(Reg::Cs, 0x10)])), Code::Unsupported);
    assert_eq!(code(Verdict::Inject(Inject::Nmi)), Code::Unsupported);
    assert_eq!(code(Verdict::Set(vec![(Reg::Cr8, 2)])), Code::Unsupported);
    client.answer(event.seq, &Verdict::Step).unwrap();
    lab.mailbox.outcome(1, Op::WriteCr3, seq, LONG).unwrap();
}

#[test]
fn cr8_and_what_ports_get_are_never_written_and_qemu_lives_on() {
    if !at_least((10, 0)) {
        return;
    }
    let lab = Lab::start(2, true);
    let client = lab.client();
    let orders: [(Op, &[u64], Kind); 2] =
        [(Op::WriteCr8, &[1, 5], Kind::Cr8), (Op::Out, &[1, 0x80, 0x5a, 1], Kind::Io)];
    for (op, args, kind) in orders {
        client.watch(&wanted([watch(kind, true)])).unwrap();
        let seq = lab.mailbox.post(1, op, args).unwrap();
        let event = next(&client);
        let refused = |answer: Result<(), Failure>| match answer {
            Err(Failure::Refused(refusal)) => assert_eq!(refusal.code, Code::Unsupported, "{refusal:?}"),
            other => panic!("{other:?}"),
        };
        for value in [0, 2, 15] {
            refused(client.answer(event.seq, &Verdict::Value(value)));
            refused(client.answer(event.seq, &Verdict::Set(vec![(Reg::Cr8, value as u64)])));
            refused(client.set_registers(event.seq, &[(Reg::Cr8, value as u64)]));
        }
        client.answer(event.seq, &Verdict::Continue).unwrap();
        client.watch(&wanted([])).unwrap();
        lab.mailbox.outcome(1, op, seq, LONG).unwrap();
    }
    assert_eq!(results(lab.mailbox.order(1, Op::ReadCr8, &[1], LONG).unwrap())[0], 5);
}

#[test]
fn verdicts_do_what_they_say() {
    if !at_least((11, 0)) {
        return;
    }
    let lab = Lab::start(2, true);
    let client = lab.client();
    let go = |order: (Op, &[u64]), kind, verdict| answered(&lab, &client, order, kind, &verdict);
    let cr8 = || results(lab.mailbox.order(1, Op::ReadCr8, &[1], LONG).unwrap())[0];
    go((Op::WriteCr8, &[1, 5]), Kind::Cr8, Verdict::Continue);
    assert_eq!(cr8(), 5);
    go((Op::WriteCr8, &[1, 6]), Kind::Cr8, Verdict::Deny);
    assert_eq!(cr8(), 5);
    let bases = |op: Op, args: &[u64]| results(lab.mailbox.order(1, op, args, LONG).unwrap())[0];
    go((Op::WriteMsr, &[1, 0xc000_0102, 0x6000]), Kind::Msr, Verdict::Value(0x7000));
    assert_eq!(bases(Op::ReadMsr, &[1, 0xc000_0102]), 0x7000);
    assert_eq!(results(go((Op::ReadCr8, &[1]), Kind::Cr8, Verdict::Value(9)))[0], 9);
    go((Op::WriteCr8, &[1, 0]), Kind::Cr8, Verdict::Continue);
    let values = 1 | 2 << 32 | 3 << 64 | 4 << 96;
    assert_eq!(results(go((Op::Cpuid, &[1, 0, 0]), Kind::Cpuid, Verdict::Value(values))), [1, 2, 3, 4]);
    assert_eq!(results(go((Op::In, &[1, 0x80, 1]), Kind::Io, Verdict::Value(0xa5)))[0] & 0xff, 0xa5);
    // CPUID of leaf 0 instead of 0x80000000: the registers are set, then it is executed.
    let plain = results(lab.mailbox.order(1, Op::Cpuid, &[1, 0, 0], LONG).unwrap());
    let set = Verdict::Set(vec![(Reg::Rax, 0), (Reg::Rcx, 0)]);
    assert_eq!(results(go((Op::Cpuid, &[1, 0x8000_0000, 0]), Kind::Cpuid, set)), plain);
    let before = lab.mailbox.counters(1).unwrap();
    go((Op::Int3, &[1]), Kind::Breakpoint, Verdict::Deny);
    let counted = lab.mailbox.counters(1).unwrap().since(&before);
    assert!(!counted.contains_key(&vmtree_guest::mailbox::Counter::Breakpoints), "{counted:?}");
}

#[test]
fn an_injected_page_fault_is_taken_as_asked() {
    if !at_least((11, 0)) {
        return;
    }
    let lab = Lab::start(2, true);
    let client = lab.client();
    let unmapped = lab.mailbox.header(vmtree_guest::mailbox::header::GUARD).unwrap();
    let mapped = lab.mailbox.header(vmtree_guest::mailbox::header::DATA).unwrap();
    let faults = [(unmapped + 0x18, 2), (mapped + 0x20, 3), (0x7fff_1234_5678, 6)];
    for (address, error) in faults {
        let verdict = Verdict::Inject(Inject::PageFault { address, error });
        let outcome = answered(&lab, &client, (Op::Cpuid, &[1, 0, 0]), Kind::Cpuid, &verdict);
        let rip = lab.mailbox.site(Site::Cpuid).unwrap();
        assert_eq!(outcome, Outcome::Faulted { vector: 14, error: u64::from(error), cr2: address, rip });
    }
}

#[test]
fn an_interrupt_that_comes_before_an_injected_page_fault_is_taken_first_and_told_where_it_came() {
    if !at_least((11, 0)) {
        return;
    }
    let lab = Lab::start(2, true);
    let client = lab.client();
    let rip = lab.mailbox.site(Site::Cpuid).unwrap();
    let fault = Outcome::Faulted { vector: 14, error: 6, cr2: 0x7fff_1234_5678, rip };
    let inject = Verdict::Inject(Inject::PageFault { address: 0x7fff_1234_5678, error: 6 });
    let mut came_first = 0;
    for _ in 0..10 {
        client.watch(&wanted([watch(Kind::Cpuid, true), watch(Kind::Interrupt, false)])).unwrap();
        let seq = lab.mailbox.post(1, Op::Cpuid, &[1, 0, 0]).unwrap();
        let held = std::iter::repeat_with(|| client.next(LONG).unwrap().unwrap())
            .find(|event| event.kind == Kind::Cpuid && event.vcpu == 1);
        // Long enough for a tick to wait.
        std::thread::sleep(Duration::from_millis(20));
        client.answer(held.unwrap().seq, &inject).unwrap();
        assert_eq!(lab.mailbox.outcome(1, Op::Cpuid, seq, LONG).unwrap(), fault);
        client.watch(&wanted([])).unwrap();
        let events = all(&client);
        came_first += events.iter().filter(|event| event.vcpu == 1 && event.rip == rip).count();
        assert!(events.iter().all(|event| event.rip < 0x1000_0000), "{events:x?}");
    }
    assert!(came_first > 0);
}

#[test]
fn a_denied_fetch_gets_a_page_fault() {
    if !at_least((11, 0)) {
        return;
    }
    let lab = Lab::start(2, true);
    let client = lab.client();
    let code = lab.mailbox.header(vmtree_guest::mailbox::header::CODE).unwrap();
    let rule = Rule { frames: code >> 12..(code >> 12) + 1, access: 3, hold: true };
    client.watch(&Wanted { watches: Vec::new(), rules: vec![rule] }).unwrap();
    let seq = lab.mailbox.post(1, Op::Exec, &[1, code]).unwrap();
    let event = next(&client);
    assert_eq!((event.kind, event.rip, event.a), (Kind::Slat, code, code));
    client.answer(event.seq, &Verdict::Deny).unwrap();
    let outcome = lab.mailbox.outcome(1, Op::Exec, seq, LONG).unwrap();
    assert_eq!(outcome, Outcome::Faulted { vector: 14, error: 0x11, cr2: code, rip: code });
}
