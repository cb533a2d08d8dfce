//! A client that dies with every vCPU held, and clients that come and go.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vmtree_agent::client::Client;
use vmtree_agent::{Kind, Socket, Verdict};
use vmtree_guest::mailbox::{Counter, Op};

use crate::lab::{LONG, Lab, at_least, soon, wanted, watch};

/// Not a test: the client that is killed. It holds every CR3 write of four vCPUs, says so, and waits.
#[test]
#[ignore = "the child of the test below"]
fn child() {
    let path = std::env::var("VMTREE_TEST_SOCKET").unwrap();
    let client = Client::open(Arc::new(Socket::connect(path.as_ref()).unwrap())).unwrap();
    let reader = client.clone();
    thread::spawn(move || reader.read_forever());
    client.watch(&wanted([watch(Kind::Cr3, true)])).unwrap();
    println!("armed");
    let mut held = [false; 4];
    while held != [true; 4] {
        let event = client.next(LONG).unwrap().unwrap();
        held[event.vcpu as usize] = true;
    }
    println!("held");
    thread::sleep(LONG);
}

fn says(lines: &mut impl Iterator<Item = std::io::Result<String>>, what: &str) {
    let found = lines.any(|line| line.unwrap().ends_with(what));
    assert!(found, "the child never says {what}");
}

#[test]
fn killed_with_four_vcpus_held_the_client_leaves_a_guest_that_goes_on_within_a_second() {
    use std::io::BufRead;
    if !at_least((10, 0)) {
        return;
    }
    let lab = Lab::start(4, true);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "death::child", "--ignored", "--nocapture"])
        .env("VMTREE_TEST_SOCKET", lab.socket())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    says(&mut lines, "armed");
    let seqs: Vec<_> = (0..4).map(|vcpu| lab.mailbox.post(vcpu, Op::WriteCr3, &[50]).unwrap()).collect();
    says(&mut lines, "held");
    let held = lab.mailbox.counters(2).unwrap();
    thread::sleep(Duration::from_millis(300));
    let still = lab.mailbox.counters(2).unwrap();
    assert_eq!(still.get(Counter::Cr3Writes), held.get(Counter::Cr3Writes));
    // SIGKILL.
    child.kill().unwrap();
    let killed = Instant::now();
    for (vcpu, seq) in (0..4).zip(seqs) {
        lab.mailbox.outcome(vcpu, Op::WriteCr3, seq, LONG).unwrap();
    }
    let took = killed.elapsed();
    child.wait().unwrap();
    eprintln!("the guest went on and was done {took:?} after the kill");
    assert!(took < Duration::from_secs(1), "{took:?}");
    // The next client finds everything as at the start.
    let client = lab.client();
    lab.mailbox.order(1, Op::WriteCr3, &[5], LONG).unwrap();
    assert_eq!(client.next(Duration::from_millis(200)).unwrap(), None);
}

#[test]
fn clients_come_and_go_and_leave_nothing() {
    if !at_least((10, 0)) {
        return;
    }
    let cycles: usize = std::env::var("VMTREE_CYCLES").map_or(300, |text| text.parse().unwrap());
    let lab = Lab::start(2, true);
    let usage = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", lab.qemu.id())).unwrap();
        let field = |name: &str| -> usize {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let files = std::fs::read_dir(format!("/proc/{}/fd", lab.qemu.id())).unwrap().count();
        (files, field("Threads:"), field("VmRSS:"))
    };
    let cycle = |count: usize| {
        for _ in 0..count {
            let client = lab.client();
            client.watch(&wanted([watch(Kind::Cr3, true), watch(Kind::Msr, false)])).unwrap();
            let seq = lab.mailbox.post(1, Op::WriteCr3, &[1]).unwrap();
            let event = client.next(LONG).unwrap().unwrap();
            client.answer(event.seq, &Verdict::Continue).unwrap();
            lab.mailbox.outcome(1, Op::WriteCr3, seq, LONG).unwrap();
            client.close();
        }
    };
    cycle(50);
    thread::sleep(Duration::from_millis(300));
    let before = usage();
    let start = Instant::now();
    cycle(cycles);
    eprintln!("{cycles} cycles in {:?}", start.elapsed());
    soon("threads and files are given back", || usage().0 <= before.0 && usage().1 <= before.1);
    let after = usage();
    eprintln!("files, threads, KiB: {before:?} before, {after:?} after");
    assert!(after.2 < before.2 + 4096);
}
