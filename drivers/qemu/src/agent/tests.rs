//! The driver's end against agents that serve well and badly.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vmtree_agent::{
    self as wire, Action as WireAction, Code, Kind, Offer, Reg, Subject, ToAgent, ToClient, flag,
};
use vmtree_api::events::{
    Action, Detail, EventKind, EventSource, Held, Inject, Move, Verdict, Wanted, Watch, Way,
};
use vmtree_api::views::Rule;
use vmtree_api::{Access, Arch, ErrorKind, Gfn, Gva, RegValue, VcpuId, ViewId};

use super::fake::{Fake, Peer};
use super::{Events, words};

const SOON: Duration = Duration::from_secs(5);

fn told(kind: Kind, way: wire::Way, seq: u64, vcpu: u32, held: bool) -> wire::Event {
    let mut event = wire::Event::new(kind, way, vcpu);
    (event.seq, event.flags) = (seq, if held { flag::HELD } else { 0 });
    (event.rip, event.cr3, event.a, event.b) = (0x1000, 0x2000, 3, 4);
    event
}

fn cr3(seq: u64, vcpu: u32, held: bool) -> ToClient {
    ToClient::Event(told(Kind::Cr3, wire::Way::To, seq, vcpu, held))
}

fn offer(kind: Kind, subject: Subject, missing: Option<&str>) -> Offer {
    Offer { kind, subject, missing: missing.map(str::to_owned) }
}

fn next(events: &Events) -> Held {
    events.next(SOON).unwrap().expect("an event")
}

/// An agent that says hello, sends these, and then does `serve`.
fn sending(messages: Vec<ToClient>, serve: impl Fn(&mut Peer) + Send + 'static) -> Fake {
    Fake::start(move |mut peer| {
        peer.greet(Vec::new());
        peer.send(&messages);
        serve(&mut peer);
    })
}

fn register(name: &str) -> vmtree_api::RegId {
    Arch::X86_64.register(name).unwrap()
}

#[test]
fn offers_keep_the_agents_reasons_and_fill_its_gaps() {
    let fake = Fake::start(|mut peer| {
        let seen = |way, missing| offer(Kind::Cr3, Subject::Seen(way), missing);
        let takes = |action, missing| offer(Kind::Cr3, Subject::Takes(action), missing);
        peer.greet(vec![
            seen(wire::Way::To, None),
            takes(WireAction::Deny, Some("not\nhere")),
            takes(WireAction::Value, None),
        ]);
        assert_eq!(peer.receive(), None);
    });
    let events = fake.connect().unwrap();
    assert_eq!(events.name(), "a fake agent");
    let [row] = events.offers() else { panic!("{:?}", events.offers()) };
    assert_eq!(row.kind, EventKind::Cr3);
    let ways: Vec<_> = row.ways.iter().map(|(way, there)| (*way, there.is_ok())).collect();
    assert_eq!(ways, [(Way::To, true), (Way::From, false)]);
    let actions: Vec<_> = row.actions.iter().map(|(action, there)| (*action, there.is_ok())).collect();
    let expected =
        [(Action::Continue, true), (Action::Deny, false), (Action::Value, true), (Action::View, false)];
    assert_eq!(actions, expected);
    assert_eq!(row.actions[1].1.as_ref().unwrap_err().why, "not here");
}

#[test]
fn told_events_do_not_wait_and_held_ones_are_answered_once() {
    let (sender, heard) = mpsc::channel();
    let fake = sending(vec![cr3(1, 0, false), cr3(2, 1, true), cr3(3, 0, true)], move |peer| {
        while let Some(message) = peer.receive() {
            if let ToAgent::Answer { id, seq, verdict } = message {
                if id != 0 {
                    let refused = verdict == wire::Verdict::Value(1);
                    let code = if refused { Code::Invalid } else { Code::Ok };
                    peer.send(&[ToClient::Done { id, code, why: "no\nsuch value".to_owned() }]);
                }
                sender.send((seq, verdict)).unwrap();
            }
        }
    });
    let events = fake.connect().unwrap();
    assert!(!next(&events).waits() && !events.holds().any());
    let (held, other) = (next(&events), next(&events));
    assert!(held.waits() && events.holds().any());
    assert_eq!(held.event().detail, Detail::Control(Move::To { old: 3, new: 4 }));
    assert_eq!((held.event().vcpu, held.event().rip, held.event().cr3), (VcpuId(1), 0x1000, 0x2000));
    let refused = held.answer(&Verdict::Value(1)).unwrap_err();
    assert_eq!((refused.error.kind(), refused.error.why()), (ErrorKind::Invalid, "no such value"));
    let held = refused.held.unwrap();
    // A view, and a register that no agent knows, don't even get there.
    let held = held.answer(&Verdict::View(ViewId(1))).unwrap_err().held.unwrap();
    let set = Verdict::Set(vec![(register("lstar"), RegValue::Word(1))]);
    let held = held.answer(&set).unwrap_err().held.unwrap();
    assert_eq!(events.holds().refuse("test").unwrap_err().kind(), ErrorKind::Busy);
    held.answer(&Verdict::Set(vec![(register("rax"), RegValue::Word(7))])).unwrap();
    assert!(events.holds().any());
    drop(other);
    assert!(!events.holds().any() && events.holds().refuse("test").is_ok());
    let answers: Vec<_> = (0..3).map(|_| heard.recv_timeout(SOON).unwrap()).collect();
    let set = wire::Verdict::Set(vec![(Reg::Rax, 7)]);
    assert_eq!(answers, [(2, wire::Verdict::Value(1)), (2, set), (3, wire::Verdict::Continue)]);
}

#[test]
fn a_verdict_of_the_thread_that_takes_events_passes_a_flood_of_them() {
    let fake = sending(vec![cr3(1, 0, true)], |peer| {
        while let Some(message) = peer.receive() {
            if let ToAgent::Answer { id, .. } = message {
                // More than the client keeps.
                let flood: Vec<_> = (2..20_002).map(|seq| cr3(seq, 0, false)).collect();
                peer.send(&flood);
                peer.send(&[ToClient::Done { id, code: Code::Ok, why: String::new() }]);
            }
        }
    });
    let events = fake.connect().unwrap();
    let begun = Instant::now();
    next(&events).answer(&Verdict::Deny).unwrap();
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    for _ in 0..20_000 {
        assert!(!next(&events).waits());
    }
}

#[test]
fn what_is_wanted_is_told_whole_or_refused_before() {
    let (sender, heard) = mpsc::channel();
    let fake = sending(Vec::new(), move |peer| {
        while let Some(ToAgent::Watch { id, wanted }) = peer.receive() {
            let code = if wanted.watches.is_empty() { Code::TimedOut } else { Code::Ok };
            peer.send(&[ToClient::Done { id, code, why: "no vCPU came".to_owned() }]);
            sender.send(wanted).unwrap();
        }
    });
    let events = fake.connect().unwrap();
    let rule = |view, start, end| Rule {
        view: ViewId(view),
        frames: Gfn(start)..Gfn(end),
        access: Access::READ.union(Access::EXECUTE),
        hold: true,
    };
    let watch =
        Watch { kind: EventKind::Msr, way: Some(Way::To), vcpu: Some(VcpuId(1)), index: Some(7), hold: true };
    let wanted = |rules| Wanted { watches: vec![watch.clone()], rules };
    // Across the border of two blocks, up to the end of RAM.
    events.watch(&wanted(vec![rule(0, 0x7f, 0x100)])).unwrap();
    let got = heard.recv_timeout(SOON).unwrap();
    let expected =
        wire::Watch { kind: Kind::Msr, way: Some(wire::Way::To), vcpu: Some(1), index: Some(7), hold: true };
    assert_eq!(got.watches, [expected]);
    assert_eq!(got.rules, [wire::Rule { frames: 0x7f..0x100, access: 5, hold: true }]);
    for (rules, kind) in [
        (vec![rule(0, 0x7f, 0x101)], ErrorKind::NotFound),
        (vec![rule(0, 5, 5)], ErrorKind::Invalid),
        (vec![rule(0, 1, u64::MAX)], ErrorKind::NotFound),
        (vec![rule(1, 0, 1)], ErrorKind::NotFound),
        (vec![rule(0, 0, 1); 50_000], ErrorKind::NoSpace),
    ] {
        assert_eq!(events.watch(&wanted(rules)).unwrap_err().kind(), kind);
    }
    assert!(heard.try_recv().is_err());
    let refused = events.watch(&Wanted::default()).unwrap_err();
    assert_eq!((refused.kind(), refused.why()), (ErrorKind::TimedOut, "no vCPU came"));
}

#[test]
fn a_held_vcpus_registers_are_the_agents() {
    let fake = sending(vec![cr3(1, 0, true)], |peer| {
        while let Some(message) = peer.receive() {
            match message {
                ToAgent::Read { id, seq: 1 } => {
                    let registers = vec![(Reg::Rip, 5), (Reg::Cs, 0x10), (Reg::KernelGsBase, 9)];
                    peer.send(&[ToClient::Registers { id, registers }]);
                }
                ToAgent::Write { id, seq: 1, registers } => {
                    let code = if registers == [(Reg::R8, 1)] { Code::Ok } else { Code::Unsupported };
                    peer.send(&[ToClient::Done { id, code, why: String::new() }]);
                }
                _ => {}
            }
        }
    });
    let events = fake.connect().unwrap();
    let held = next(&events);
    let holds = events.holds();
    assert!(holds.read(VcpuId(1)).is_none() && holds.write(VcpuId(1), &[]).is_none());
    let set = holds.read(VcpuId(0)).unwrap().unwrap();
    for (name, value) in [("rip", 5), ("kernel_gs_base", 9)] {
        assert!(super::is_had(register(name)));
        assert_eq!(set.get(register(name)), Some(RegValue::Word(value)));
    }
    assert!(!super::is_had(register("rflags")) && !super::is_had(register("cs")));
    let write = |name, value| holds.write(VcpuId(0), &[(register(name), value)]).unwrap();
    write("r8", RegValue::Word(1)).unwrap();
    assert_eq!(write("r9", RegValue::Word(1)).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(write("dr7", RegValue::Word(1)).unwrap_err().kind(), ErrorKind::Unsupported);
    held.answer(&Verdict::Continue).unwrap();
    assert!(holds.read(VcpuId(0)).is_none());
}

#[test]
fn an_agent_that_goes_ends_events_and_holds_nobody() {
    // It hangs up, sends what is no frame, and tells of what can't be.
    let impossible = ToClient::Event(told(Kind::Cr3, wire::Way::Read, 2, 1, true));
    let mut strange = Vec::new();
    impossible.encode(&mut strange);
    for last in [Vec::new(), vec![0xff; 64], strange] {
        let fake = Fake::start(move |mut peer| {
            peer.greet(Vec::new());
            peer.send(&[cr3(1, 0, true)]);
            peer.raw(&last);
            if !last.is_empty() {
                // What it broke it off by is for the client to see.
                while peer.receive().is_some() {}
            }
        });
        let events = fake.connect().unwrap();
        let held = next(&events);
        let begun = Instant::now();
        let error = loop {
            match events.next(SOON) {
                Ok(None) => assert!(begun.elapsed() < SOON),
                Ok(Some(held)) => panic!("{held:?}"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::Gone);
        assert!(error.why().contains("mount anew"), "{error}");
        while events.holds().any() {
            assert!(begun.elapsed() < SOON);
            thread::sleep(Duration::from_millis(1));
        }
        let refused = held.answer(&Verdict::Deny).unwrap_err();
        assert!(refused.held.is_none() && refused.error.kind() == ErrorKind::Gone);
        assert_eq!(events.watch(&Wanted::default()).unwrap_err().kind(), ErrorKind::Gone);
    }
}

#[test]
fn an_agent_that_falls_silent_counts_as_gone() {
    let fake = sending(vec![cr3(1, 0, true)], |_| thread::sleep(Duration::from_secs(15)));
    let events = fake.connect().unwrap();
    let held = next(&events);
    let begun = Instant::now();
    while events.next(Duration::from_secs(1)).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    drop(held);
    drop(events);
    assert!(begun.elapsed() < Duration::from_secs(12));
}

#[test]
fn who_can_not_be_connected_to_is_told_with_the_cure() {
    let refusing = |why: &'static str| {
        Fake::start(move |mut peer| peer.send(&[ToClient::Refused { why: why.to_owned() }]))
    };
    let told = |fake: &Fake| {
        let error = fake.connect().err().unwrap();
        (error.kind(), error.why().to_owned())
    };
    let (kind, why) = told(&refusing("the agent has a client already: only one at a time"));
    assert!(kind == ErrorKind::Busy && why.contains("unmount"), "{why}");
    let (kind, why) = told(&refusing("its version is not that of this agent: use the same vmtree"));
    assert!(kind == ErrorKind::Protocol && why.contains("the same vmtree"), "{why}");
    let (kind, why) = told(&Fake::start(|mut peer| peer.raw(b"220 mail.example ESMTP\r\n")));
    assert!(kind == ErrorKind::Protocol && why.contains("does not serve as an agent"), "{why}");
    let fake = Fake::start(drop);
    assert_eq!(told(&fake).0, ErrorKind::Protocol);
    std::fs::remove_file(&fake.path).unwrap();
    let (kind, why) = told(&fake);
    assert!(kind == ErrorKind::NotFound && why.contains("agent=PATH"), "{why}");
    drop(std::os::unix::net::UnixListener::bind(&fake.path).unwrap());
    assert_eq!(told(&fake).0, ErrorKind::NotFound);
}

#[test]
fn one_that_leaves_is_waited_for() {
    let first = std::sync::atomic::AtomicBool::new(true);
    let fake = Fake::start(move |mut peer| {
        if first.swap(false, std::sync::atomic::Ordering::Relaxed) {
            peer.send(&[ToClient::Refused {
                why: "the agent has a client already: only one at a time".to_owned(),
            }]);
        } else {
            peer.greet(Vec::new());
            assert_eq!(peer.receive(), None);
        }
    });
    assert!(fake.connect().is_ok());
}

#[test]
fn every_verdict_has_its_words() {
    let inject = |what| words::verdict(&Verdict::Inject(what)).unwrap();
    let fault = Inject::PageFault { address: Gva(5), error: 6 };
    assert_eq!(inject(fault), wire::Verdict::Inject(wire::Inject::PageFault { address: 5, error: 6 }));
    assert_eq!(inject(Inject::Nmi), wire::Verdict::Inject(wire::Inject::Nmi));
    assert_eq!(words::verdict(&Verdict::Step(None)).unwrap(), wire::Verdict::Step);
    assert_eq!(words::verdict(&Verdict::Step(Some(ViewId(3)))).unwrap_err().kind(), ErrorKind::Unsupported);
}

fn any_event() -> impl Strategy<Value = wire::Event> {
    let kinds = proptest::sample::select(Kind::ALL);
    let ways = proptest::sample::select(wire::Way::ALL);
    let rest = (any::<u16>(), 0..1200_u32, 0..300_u32, any::<u64>(), any::<u64>());
    (kinds, ways, rest).prop_map(|(kind, way, (flags, index, extra, a, b))| wire::Event {
        flags,
        index,
        extra,
        a,
        b,
        ..wire::Event::new(kind, way, 0)
    })
}

proptest! {
    #[test]
    fn an_event_is_of_its_kind_and_way_or_none(event in any_event()) {
        if let Ok(found) = words::event(&event) {
            prop_assert_eq!(found.kind.name(), format!("{:?}", event.kind).to_lowercase().replace("guestrequest", "guest_request"));
            prop_assert_eq!(words::agent_way(found.way()), event.way);
            prop_assert!(found.kind.ways().contains(&found.way()));
        }
    }
}
