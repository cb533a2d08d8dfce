//! Controlling: the vCPU waits for an answer, and for no longer than there is somebody to give it.

use std::fs;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use vmtree_api::events::Verdict;

use crate::{Lab, errno, lab, seq, wait_until};

/// Reads one record of an open file.
fn record(file: &mut fs::File) -> String {
    let mut buf = [0; 4096];
    let got = file.read(&mut buf).unwrap();
    String::from_utf8(buf[..got].to_vec()).unwrap()
}

/// One write(2).
fn say(file: &mut fs::File, text: &str) -> std::io::Result<usize> {
    file.write(text.as_bytes())
}

/// A control loop of a shell that answers `count` events.
const LOOP: &str = "exec 3<>events/cr3
for n in $(seq $COUNT); do
    read -r event <&3
    s=${event%% *}; s=${s#seq=}
    case $event in *held=1*) echo \"$s $ANSWER\" >&3;; esac
    echo \"$event\"
done";

#[test]
fn a_shell_answers_each_event() {
    let Some(lab) = lab("control loop", "") else { return };
    let shell = lab.bash(&format!("COUNT=20 ANSWER=deny; {LOOP}"));
    lab.script.wait_watches(1);
    for n in 0..20 {
        assert_eq!(lab.script.cr3(n % 2, u64::from(n)), Some(true));
        if n % 3 == 0 {
            lab.script.verdicts(n as usize + 1);
        }
    }
    let lines = shell.lines();
    assert_eq!(lines.len(), 20);
    assert!(lines.iter().all(|line| line.contains("held=1")), "{lines:?}");
    assert!(lab.script.verdicts(20).iter().all(|(_, verdict)| *verdict == Verdict::Deny));
    lab.script.wait_watches(0);
    assert!(lab.script.cr3(0, 1).is_none());
    lab.end();
}

#[test]
fn several_held_vcpus_are_answered_in_any_order() {
    let Some(lab) = lab("several held vCPUs", "") else { return };
    let mut file = lab.control("events/cr3").unwrap();
    lab.script.cr3(0, 10);
    lab.script.cr3(1, 11);
    let mut records = String::new();
    while records.lines().count() < 2 {
        records += &record(&mut file);
    }
    let seqs: Vec<_> = records.lines().map(seq).collect();
    assert_eq!(lab.text("vcpu/0/state"), format!("held {}\n", seqs[0]));
    assert_eq!(lab.text("vcpu/1/state"), format!("held {}\n", seqs[1]));
    say(&mut file, &format!("{} continue", seqs[1])).unwrap();
    assert_eq!(lab.script.verdicts(1), [(1, Verdict::Continue)]);
    assert_eq!(lab.text("vcpu/1/state"), "running\n");
    say(&mut file, &format!("{} deny", seqs[0])).unwrap();
    assert_eq!(lab.script.verdicts(2)[1], (0, Verdict::Deny));
    drop(file);
    lab.end();
}

/// A file with one event held, and its number.
fn held(lab: &Lab, vcpu: u32) -> (fs::File, u64) {
    let mut file = lab.control("events/cr3").unwrap();
    assert_eq!(lab.script.cr3(vcpu, 5), Some(true));
    let seq = seq(&record(&mut file));
    (file, seq)
}

#[test]
fn answers_out_of_turn_and_malformed_ones_leave_the_vcpu_held() {
    let Some(lab) = lab("bad answers", "") else { return };
    let (mut file, seq) = held(&lab, 0);
    let stale = (libc::ESTALE, "ESTALE");
    let invalid = (libc::EINVAL, "EINVAL");
    for (text, (code, name)) in [
        (format!("{} continue", seq + 1), stale),
        ("0 continue".to_owned(), stale),
        (format!("{seq}"), invalid),
        (format!("{seq} juggle"), invalid),
        ("continue".to_owned(), invalid),
        (format!("{seq} continue\n{seq} junk"), invalid),
        ("#".to_owned(), invalid),
        (format!("{seq} value=zz"), invalid),
        (format!("{seq} step"), (libc::EOPNOTSUPP, "EOPNOTSUPP")),
        (format!("{seq} view=none"), invalid),
        (format!("{seq} set nosuch=1"), invalid),
        (format!("{seq} value=0x10000000000000000"), (libc::ERANGE, "ERANGE")),
        (format!("{seq} continue{}", " ".repeat(128 << 10)), (libc::E2BIG, "E2BIG")),
    ] {
        let short: String = text.chars().take(40).collect();
        assert_eq!(errno(file.write(text.as_bytes())), code, "{short}");
        let told = lab.last_error();
        assert!(told.contains(&format!(" path=events/cr3 errno={name} why=")), "{short}: {told}");
        assert_eq!(lab.script.verdicts_now(), 0, "{short}");
        assert_eq!(lab.text("vcpu/0/state"), format!("held {seq}\n"));
    }
    say(&mut file, &format!("{seq} continue")).unwrap();
    lab.script.verdicts(1);
    assert_eq!(errno(say(&mut file, &format!("{seq} continue"))), libc::ESTALE);
    // Who only observes has nothing to say.
    let mut observer = fs::File::open(lab.path("events/cr3")).unwrap();
    assert_eq!(errno(observer.write(b"1 continue")), libc::EBADF);
    drop((file, observer));
    lab.end();
}

#[test]
fn a_second_controller_of_the_same_event_is_refused_and_a_quick_reopen_is_not() {
    let Some(lab) = lab("overlap", "") else { return };
    let first = lab.control("events/cr3,vcpu=0").unwrap();
    for name in ["events/cr3", "events/all", "events/cr3,vcpu=0", "events/cr3,dir=to"] {
        assert_eq!(errno(lab.control(name)), libc::EBUSY, "{name}");
        assert!(lab.last_error().contains("errno=EBUSY"), "{}", lab.last_error());
    }
    // Others, and observers of the same.
    let other = lab.control("events/cr3,vcpu=1").unwrap();
    let msr = lab.control("events/msr").unwrap();
    let observer = fs::File::open(lab.path("events/cr3,vcpu=0")).unwrap();
    drop((first, other, msr, observer));
    // close(2) returns before the kernel tells us: opening again waits for that.
    for _ in 0..50 {
        drop(lab.control("events/cr3").unwrap());
    }
    let write_only = fs::File::options().write(true).open(lab.path("events/cr3"));
    assert_eq!(errno(write_only), libc::EACCES);
    assert!(lab.last_error().contains("read-write"), "{}", lab.last_error());
    lab.end();
}

#[test]
fn an_answer_that_does_not_come_is_continue() {
    let Some(lab) = lab("reply timeout", "reply_timeout=0.3") else { return };
    let (mut file, seq) = held(&lab, 0);
    let begun = Instant::now();
    assert_eq!(lab.script.verdicts(1), [(0, Verdict::Continue)]);
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(150) && took < Duration::from_secs(2), "{took:?}");
    assert_eq!(errno(say(&mut file, &format!("{seq} deny"))), libc::ESTALE);
    assert_eq!(lab.text("vcpu/0/state"), "running\n");
    // Its reader waits on, past any reply_timeout, and the next event is held again.
    let script = lab.script.clone();
    let next = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(700));
        script.cr3(1, 6)
    });
    let event = record(&mut file);
    assert!(event.contains("held=1"), "{event}");
    assert_eq!(next.join().unwrap(), Some(true));
    drop(file);
    lab.end();
}

#[test]
fn a_controller_that_goes_lets_go() {
    let Some(lab) = lab("controllers that go", "reply_timeout=60") else { return };
    // Closed.
    let (file, _) = held(&lab, 0);
    drop(file);
    assert_eq!(lab.script.verdicts(1)[0], (0, Verdict::Continue));
    // Killed while it holds, blocked in its next read.
    for (count, signal) in [(2, "KILL"), (3, "INT"), (4, "TERM")] {
        lab.script.wait_watches(0);
        let mut shell = lab.bash("exec python3 -c \"import os\nf = os.open('events/cr3', os.O_RDWR)\nwhile True: os.read(f, 4096)\"");
        lab.script.wait_watches(1);
        assert_eq!(lab.script.cr3(1, 6), Some(true));
        wait_until("held", || lab.text("vcpu/1/state").starts_with("held"));
        std::thread::sleep(Duration::from_millis(50));
        shell.signal(signal);
        let begun = Instant::now();
        shell.ends_within(Duration::from_secs(2));
        assert_eq!(lab.script.verdicts(count)[count - 1], (1, Verdict::Continue));
        assert!(begun.elapsed() < Duration::from_secs(1), "{signal}: {:?}", begun.elapsed());
    }
    lab.end();
}

#[test]
fn answers_get_through_while_every_worker_waits() {
    let Some(lab) = lab("busy workers", "reply_timeout=20") else { return };
    let (mut file, seq) = held(&lab, 0);
    lab.script.hang(true);
    let path = lab.path("vcpu/0/inject");
    let stuck: Vec<_> = (0..64)
        .map(|_| {
            let path = path.with_file_name("view");
            std::thread::spawn(move || fs::write(path, "0"))
        })
        .collect();
    // The kernel lets one writer into a file at a time: mkdir, opens and reads fill the rest.
    let reads: Vec<_> = (0..64)
        .map(|_| {
            let path = lab.path("views/0/mem");
            std::thread::spawn(move || fs::File::open(path).unwrap().read(&mut [0; 16]))
        })
        .collect();
    wait_until("the workers hang", || lab.script.hung() >= 60);
    let begun = Instant::now();
    say(&mut file, &format!("{seq} deny")).unwrap();
    assert_eq!(lab.script.verdicts(1), [(0, Verdict::Deny)]);
    assert!(begun.elapsed() < Duration::from_secs(1));
    lab.script.hang(false);
    stuck.into_iter().for_each(|job| job.join().unwrap().unwrap());
    reads.into_iter().for_each(|job| drop(job.join().unwrap()));
    drop(file);
    lab.end();
}

#[test]
fn a_pause_while_a_vcpu_is_held_waits_for_nobody() {
    let Some(lab) = lab("pause while held", "") else { return };
    let (mut file, seq) = held(&lab, 0);
    lab.write("ctl", "pause").unwrap();
    assert_eq!(lab.text("state"), "paused\n");
    assert_eq!(lab.text("vcpu/0/state"), format!("held {seq}\n"));
    say(&mut file, &format!("{seq} continue")).unwrap();
    lab.script.verdicts(1);
    assert_eq!(lab.text("vcpu/0/state"), "paused\n");
    lab.write("ctl", "resume").unwrap();
    drop(file);
    lab.end();
}
