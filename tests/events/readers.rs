//! Observing: the guest never waits, and readers come and go as they like.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use crate::{errno, lab, seq, wait_until};

#[test]
fn cat_and_head_show_events_as_they_happen() {
    let Some(lab) = lab("cat and head", "") else { return };
    let head = lab.bash("head -n2 events/cr3");
    let cat = lab.bash("timeout 1 cat events/cr3; test $? = 124");
    lab.script.wait_watches(1);
    // Both are open: what is armed is their union, so wait for the second by its count.
    wait_until("two readers wait", || waiting_in_reads(&[head.pid()]) == 1);
    std::thread::sleep(Duration::from_millis(200));
    for new in 0..3 {
        assert_eq!(lab.script.cr3(0, new), Some(false), "observed, not held");
    }
    // It would seek back to where a second reader had to go on, and says that it can't.
    let head = head.output();
    let (told, noise) = (String::from_utf8(head.stdout).unwrap(), String::from_utf8(head.stderr).unwrap());
    assert!(head.status.success() && noise.lines().all(|line| line.contains("cannot seek")), "{noise}");
    let (head, cat) = (told.lines().map(str::to_owned).collect::<Vec<_>>(), cat.lines());
    assert_eq!((head.len(), cat.len()), (2, 3), "{head:?} {cat:?}");
    assert!(head[0].contains("kind=cr3") && head[0].contains("held=0"), "{head:?}");
    assert_eq!(head[..], cat[..2]);
    assert_eq!([1, 2, 3], [0, 1, 2].map(|n| seq(&cat[n])));
    // The last close disarms.
    lab.script.wait_watches(0);
    assert!(
        lab.text("events/stats").lines().any(|line| line.contains("cr3")),
        "{}",
        lab.text("events/stats")
    );
    lab.end();
}

/// How many of these sleep in a read.
pub(crate) fn waiting_in_reads(pids: &[u32]) -> usize {
    let reads = |pid: &&u32| {
        fs::read_to_string(format!("/proc/{pid}/wchan")).is_ok_and(|place| place.contains("request_wait"))
            || fs::read_to_string(format!("/proc/{pid}/syscall")).is_ok_and(|call| call.starts_with("0 "))
    };
    pids.iter().filter(reads).count()
}

#[test]
fn a_signal_ends_a_blocked_reader() {
    let Some(lab) = lab("signals to readers", "") else { return };
    for signal in ["INT", "TERM", "HUP", "KILL"] {
        let mut reader = lab.bash("exec cat events/cr3");
        lab.script.wait_watches(1);
        std::thread::sleep(Duration::from_millis(50));
        reader.signal(signal);
        let took = reader.ends_within(Duration::from_secs(2));
        println!("{signal}: {} ms", took.as_millis());
        lab.script.wait_watches(0);
    }
    let begun = Instant::now();
    let timeout = lab.bash("timeout 1 cat events/cr3").output();
    assert_eq!(timeout.status.code(), Some(124));
    assert!(begun.elapsed() < Duration::from_millis(2500), "{:?}", begun.elapsed());
    lab.end();
}

#[test]
fn a_reader_that_is_stopped_or_resized_reads_on() {
    let Some(lab) = lab("stopped reader", "") else { return };
    let reader = lab.bash("cat events/cr3 | sed 1q");
    let shell = lab.bash("exec 3<events/cr3; read -r event <&3; echo \"$event\"");
    lab.script.wait_watches(1);
    std::thread::sleep(Duration::from_millis(100));
    for signal in ["STOP", "CONT", "WINCH"] {
        shell.signal(signal);
        reader.signal(signal);
        std::thread::sleep(Duration::from_millis(250));
    }
    lab.script.cr3(0, 1).unwrap();
    assert_eq!(shell.lines().len(), 1);
    // cat finds out that nobody reads on with its next record.
    lab.script.cr3(0, 2);
    assert_eq!(reader.lines().len(), 1);
    lab.end();
}

#[test]
fn a_reader_that_handles_its_signal_reads_on_and_loses_nothing() {
    let Some(lab) = lab("handled signals", "") else { return };
    let script = "import os, signal, sys\n\
                  signal.signal(signal.SIGUSR1, lambda *_: None)\n\
                  f = os.open('events/cr3', os.O_RDONLY)\n\
                  got = b''\n\
                  while got.count(b'\\n') < 200: got += os.read(f, 65536)\n\
                  sys.stdout.write(got.decode())\n";
    let reader = lab.bash(&format!("exec python3 -c \"{script}\""));
    lab.script.wait_watches(1);
    std::thread::sleep(Duration::from_millis(100));
    for n in 0..200 {
        if n % 10 == 0 {
            reader.signal("USR1");
        }
        lab.script.cr3(0, n).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    let lines = reader.lines();
    assert_eq!(lines.iter().map(|line| seq(line)).collect::<Vec<_>>(), (1..=200).collect::<Vec<_>>());
    lab.end();
}

#[test]
fn o_nonblock_is_of_each_read() {
    let Some(lab) = lab("O_NONBLOCK", "") else { return };
    let path = lab.path("events/cr3");
    let mut file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    assert_eq!(errno(file.read(&mut [0; 4096])), libc::EAGAIN);
    let mut later = File::open(&path).unwrap();
    rustix::fs::fcntl_setfl(&later, rustix::fs::OFlags::NONBLOCK).unwrap();
    assert_eq!(errno(later.read(&mut [0; 4096])), libc::EAGAIN);
    lab.script.cr3(0, 7);
    wait_until("the record", || file.read(&mut [0; 4096]).is_ok_and(|got| got > 10));
    assert_eq!(errno(file.read(&mut [0; 4096])), libc::EAGAIN);
    assert!(later.read(&mut [0; 4096]).unwrap() > 10);
    // EAGAIN is no refusal.
    assert_eq!(lab.text("errors"), "");
    // It is a pipe: there is no place in it to go to.
    assert_eq!(errno(later.read_at(&mut [0; 16], 0)), libc::ESPIPE);
    assert_eq!(errno(io::Seek::seek(&mut later, io::SeekFrom::Start(0))), libc::ESPIPE);
    drop((file, later));
    lab.end();
}

#[test]
fn a_read_ends_between_records_if_its_buffer_holds_one() {
    let Some(lab) = lab("whole records", "") else { return };
    let mut file = File::open(lab.path("events/cr3")).unwrap();
    for n in 0..500 {
        lab.script.cr3(n % 2, u64::from(n)).unwrap();
    }
    let mut next = 1;
    while next <= 500 {
        let mut buf = vec![0; 1000];
        let got = file.read(&mut buf).unwrap();
        assert_eq!(buf[got - 1], b'\n', "ends inside a record");
        for line in std::str::from_utf8(&buf[..got]).unwrap().lines() {
            assert_eq!(seq(line), next);
            next += 1;
        }
    }
    drop(file);
    lab.end();
}

#[test]
fn threads_that_read_one_open_file_share_its_records() {
    let Some(lab) = lab("shared open file", "") else { return };
    let file = std::sync::Arc::new(File::open(lab.path("events/cr3")).unwrap());
    let stop = "the end";
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let file = file.clone();
            std::thread::spawn(move || {
                let mut all = String::new();
                loop {
                    let mut buf = vec![0; 4096];
                    let got = (&*file).read(&mut buf).expect(stop);
                    if got == 0 {
                        return all;
                    }
                    all += std::str::from_utf8(&buf[..got]).unwrap();
                }
            })
        })
        .collect();
    for n in 0..2000 {
        lab.script.cr3(0, n).unwrap();
        if n % 50 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    // The end of the mount is the end of the file for each of them.
    drop(file);
    lab.end();
    let all: String = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
    let mut seqs: Vec<_> = all.lines().map(seq).collect();
    seqs.sort_unstable();
    assert_eq!(seqs, (1..=2000).collect::<Vec<_>>());
}
