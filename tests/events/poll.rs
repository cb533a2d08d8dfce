//! poll, select and epoll, by the programs that use them.

use std::fs::File;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::lab;

const CLIENT: &str = r#"
import os, select, selectors, sys, time
def say(*words): print(*words, flush=True)
def lines(data): return data.count(b'\n')
f = os.open('events/cr3', os.O_RDONLY | os.O_NONBLOCK)
p = select.poll(); p.register(f, select.POLLIN)
say('poll', p.poll(50))
say('ready')
assert p.poll(10000) == [(f, select.POLLIN)], 'poll'
say('poll', lines(os.read(f, 65536)))
assert p.poll(0) == [], 'poll after the read'
say('ready')
assert select.select([f], [], [], 10)[0] == [f], 'select'
say('select', lines(os.read(f, 65536)))
e = select.epoll(); e.register(f, select.EPOLLIN)
for n in range(3):
    say('ready')
    assert e.poll(10) == [(f, select.EPOLLIN)], 'epoll'
    assert e.poll(0) == [(f, select.EPOLLIN)], 'level'
    say('epoll', lines(os.read(f, 65536)))
e.close()
e = select.epoll(); e.register(f, select.EPOLLIN | select.EPOLLET)
for n in range(3):
    say('ready')
    assert e.poll(10) == [(f, select.EPOLLIN)], 'edge'
    say('edge', lines(os.read(f, 65536)))
say('none', e.poll(0.05))
more = [os.open('events/cr3', os.O_RDONLY | os.O_NONBLOCK) for _ in range(5)]
s = selectors.DefaultSelector()
for m in more: s.register(m, selectors.EVENT_READ)
say('ready')
got = set()
end = time.time() + 10
while len(got) < 5 and time.time() < end:
    for key, _ in s.select(1): got.add(key.fd); os.read(key.fd, 65536)
say('selectors', len(got))
"#;

#[test]
fn every_way_to_wait_for_a_descriptor_works() {
    let Some(lab) = lab("poll by Python", "") else { return };
    let client = lab.mounted.path().join("..").canonicalize().unwrap();
    let path = client.join(format!("vmtree-poll-{}.py", std::process::id()));
    std::fs::write(&path, CLIENT).unwrap();
    let job = lab.bash(&format!("exec python3 {}", path.display()));
    // An event each time that it is ready for one: 10 in all.
    lab.script.wait_watches(1);
    let script = lab.script.clone();
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stop = over.clone();
    let events = std::thread::spawn(move || {
        while !stop.load(std::sync::atomic::Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(150));
            script.cr3(0, 1);
        }
    });
    let output = job.output();
    over.store(true, std::sync::atomic::Ordering::SeqCst);
    events.join().unwrap();
    std::fs::remove_file(path).unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.starts_with("poll []") && told.ends_with("selectors 5\n"), "{told}");
    lab.end();
}

/// What poll(2) tells within `ms`.
fn polled(file: &File, events: PollFlags, ms: i64) -> PollFlags {
    let mut fds = [PollFd::new(file, events)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: ms * 1_000_000 })).unwrap();
    fds[0].revents()
}

#[test]
fn a_controller_can_always_be_written_and_the_end_hangs_up() {
    let Some(lab) = lab("POLLOUT and POLLHUP", "") else { return };
    let control = lab.control("events/cr3").unwrap();
    let observer = File::open(lab.path("events/msr")).unwrap();
    assert_eq!(polled(&control, PollFlags::IN | PollFlags::OUT, 0), PollFlags::OUT);
    assert_eq!(polled(&observer, PollFlags::IN | PollFlags::OUT, 0), PollFlags::empty());
    // A poll that waits, many times over: none of them is left behind.
    for _ in 0..50 {
        assert_eq!(polled(&observer, PollFlags::IN, 2), PollFlags::empty());
    }
    let waiting = std::thread::spawn(move || {
        let mut fds = [PollFd::new(&observer, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 10, tv_nsec: 0 })).unwrap();
        fds[0].revents()
    });
    std::thread::sleep(Duration::from_millis(100));
    lab.script.gone();
    let told = waiting.join().unwrap();
    assert!(told.contains(PollFlags::HUP | PollFlags::IN), "{told:?}");
    drop(control);
    lab.end();
}
