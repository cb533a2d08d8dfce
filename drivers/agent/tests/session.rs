//! An agent and its client over a line in memory: verdicts, requests, and every way in which either can end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::thread;
use std::time::Duration;

use common::{Scene, soon};
use vmtree_agent::client::{Client, Failure};
use vmtree_agent::{Code, Event, Kind, Line, Reg, ToAgent, VERSION, Verdict, Wanted, Watch, Way};

const LONG: Duration = Duration::from_secs(20);

fn wanted(kind: Kind) -> Wanted {
    Wanted {
        watches: vec![Watch { kind, way: None, vcpu: None, index: None, hold: true }],
        rules: Vec::new(),
    }
}

fn code(failure: Failure) -> Code {
    match failure {
        Failure::Refused(refusal) => refusal.code,
        Failure::Gone(why) => panic!("gone: {why}"),
    }
}

#[test]
fn a_held_vcpu_gets_the_verdict_and_serves_its_registers() {
    let scene = Scene::new();
    let client = scene.client();
    assert_eq!((client.hello().name.as_str(), client.hello().vcpus), ("still", 4));
    client.watch(&wanted(Kind::Cr3)).unwrap();
    assert_eq!(*scene.still.0.lock().unwrap(), wanted(Kind::Cr3));
    assert_eq!(code(client.watch(&wanted(Kind::Descriptor)).unwrap_err()), Code::Unsupported);
    let vcpu = scene.held(3);
    let event = client.next(LONG).unwrap().unwrap();
    assert!(event.held() && event.vcpu == 3 && event.seq == 1);
    assert_eq!(client.registers(1).unwrap()[0], (Reg::Rax, 7));
    client.set_registers(1, &[(Reg::Rcx, 9)]).unwrap();
    assert_eq!(client.registers(1).unwrap()[1], (Reg::Rcx, 9));
    assert_eq!(code(client.answer(1, &Verdict::Deny).unwrap_err()), Code::Unsupported);
    assert_eq!(code(client.answer(2, &Verdict::Step).unwrap_err()), Code::Stale);
    client.answer(1, &Verdict::Value(5)).unwrap();
    assert_eq!(vcpu.join().unwrap(), Verdict::Value(5));
    assert_eq!(code(client.answer(1, &Verdict::Step).unwrap_err()), Code::Stale);
    assert_eq!(code(client.registers(1).unwrap_err()), Code::Stale);
}

#[test]
fn held_vcpus_are_answered_in_any_order() {
    let scene = Scene::new();
    let client = scene.client();
    let vcpus: Vec<_> = (0..4).map(|vcpu| scene.held(vcpu)).collect();
    let mut events: Vec<_> = (0..4).map(|_| client.next(LONG).unwrap().unwrap()).collect();
    events.sort_by_key(|event| std::cmp::Reverse(event.vcpu));
    for event in &events {
        client.answer(event.seq, &Verdict::Value(u128::from(event.vcpu))).unwrap();
    }
    let verdicts: Vec<_> = vcpus.into_iter().map(|vcpu| vcpu.join().unwrap()).collect();
    assert_eq!(verdicts, (0..4).map(Verdict::Value).collect::<Vec<_>>());
}

#[test]
fn a_held_vcpu_is_answered_while_the_machine_waits_for_it_to_arm() {
    let scene = Scene::new();
    let client = scene.client();
    let vcpu = scene.held(1);
    let event = client.next(LONG).unwrap().unwrap();
    let arms = client.clone();
    let arming = thread::spawn(move || arms.watch(&wanted(Kind::SingleStep)));
    thread::sleep(Duration::from_millis(100));
    assert!(!arming.is_finished());
    client.answer(event.seq, &Verdict::Value(1)).unwrap();
    assert_eq!(vcpu.join().unwrap(), Verdict::Value(1));
    arming.join().unwrap().unwrap();
    assert_eq!(*scene.still.0.lock().unwrap(), wanted(Kind::SingleStep));
    // A client that goes meanwhile lets all go at once, and then what it wanted.
    let vcpu = scene.held(1);
    client.next(LONG).unwrap().unwrap();
    let arms = client.clone();
    let arming = thread::spawn(move || arms.watch(&wanted(Kind::SingleStep)));
    thread::sleep(Duration::from_millis(100));
    client.close();
    assert_eq!(vcpu.join().unwrap(), Verdict::Continue);
    assert!(matches!(arming.join().unwrap(), Err(Failure::Gone(_))));
    soon("nothing is wanted", || *scene.still.0.lock().unwrap() == Wanted::default());
}

#[test]
fn a_client_that_goes_lets_all_go_and_leaves_nothing_wanted() {
    let scene = Scene::new();
    for _ in 0..20 {
        let mut opened = None;
        soon("a client is served", || {
            opened = Client::open(scene.line()).ok();
            opened.is_some()
        });
        let client = opened.unwrap();
        common::read(&client);
        client.watch(&wanted(Kind::Cr3)).unwrap();
        let vcpus: Vec<_> = (0..4).map(|vcpu| scene.held(vcpu)).collect();
        client.next(LONG).unwrap().unwrap();
        client.close();
        for vcpu in vcpus {
            assert_eq!(vcpu.join().unwrap(), Verdict::Continue);
        }
        soon("nothing is wanted", || *scene.still.0.lock().unwrap() == Wanted::default());
    }
}

#[test]
fn without_a_client_events_go_nowhere_and_wait_for_nothing() {
    let scene = Scene::new();
    scene.agent.tell(Event::new(Kind::Msr, Way::To, 0));
    assert_eq!(scene.held(0).join().unwrap(), Verdict::Continue);
}

#[test]
fn a_second_client_is_told_that_there_is_one() {
    let scene = Scene::new();
    let _first = scene.client();
    let why = Client::open(scene.line()).err().unwrap();
    assert!(why.contains("one at a time"), "{why}");
}

#[test]
fn observed_events_arrive_whole_and_in_order_however_slow_the_client() {
    const COUNT: u64 = 60_000;
    let scene = Scene::new();
    let client = scene.client();
    let agent = scene.agent.clone();
    let guest = thread::spawn(move || {
        for count in 0..COUNT {
            agent.tell(Event { a: count, ..Event::new(Kind::Cr3, Way::To, 0) });
        }
    });
    for count in 0..COUNT {
        if count % 10_000 == 0 {
            thread::sleep(Duration::from_millis(20));
        }
        let event = client.next(LONG).unwrap().unwrap();
        assert_eq!((event.seq, event.a, event.held()), (count + 1, count, false));
    }
    guest.join().unwrap();
}

/// Its end of the line, with a hello said.
fn greeted(scene: &Scene) -> std::sync::Arc<dyn Line> {
    let line = scene.line();
    let mut bytes = Vec::new();
    ToAgent::Hello { version: VERSION }.encode(&mut bytes);
    line.send(&bytes).unwrap();
    line
}

#[test]
fn a_client_that_stops_reading_or_speaks_garbage_is_let_go_of() {
    let scene = Scene::new();
    let deaf = greeted(&scene);
    let agent = scene.agent.clone();
    // More than the outbox and the line hold together: the guest waits, then goes on without the client.
    let guest =
        thread::spawn(move || (0..50_000).for_each(|_| agent.tell(Event::new(Kind::Cr3, Way::To, 0))));
    guest.join().unwrap();
    deaf.close();
    soon("the next is served", || Client::open(scene.line()).is_ok());
    thread::sleep(Duration::from_millis(100));
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[0; 8]] {
        let line = scene.line();
        line.send(garbage).unwrap();
        let mut buf = [0; 4096];
        soon("it is let go of", || matches!(line.receive(&mut buf, Duration::from_millis(100)), Ok(0)));
    }
    soon("the next is served", || Client::open(scene.line()).is_ok());
}

#[test]
fn a_client_that_falls_silent_is_let_go_of() {
    let scene = Scene::new();
    let _mute = greeted(&scene);
    soon("it is greeted", || {
        let vcpu = scene.held(0);
        thread::sleep(Duration::from_millis(50));
        let held = !vcpu.is_finished();
        if held {
            assert_eq!(vcpu.join().unwrap(), Verdict::Continue);
        }
        held
    });
}
