//! Sessions with events, views and injection over a driver that fails, hangs or loses its VM.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Once;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vmtree_api::events::Wanted;
use vmtree_api::{RunState, ViewId};
use vmtree_guest::Mailbox;
use vmtree_guest::mailbox::{Op, slot, slot_of};

use crate::Stuck;
use crate::driver::{Call, Faults, Faulty, Inner};
use crate::mounted::{Mounted, possible};

/// Keeps the warnings of this process.
struct Warnings(Mutex<Vec<String>>);

static WARNINGS: Warnings = Warnings(Mutex::new(Vec::new()));

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }
    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().push(record.args().to_string());
    }
    fn flush(&self) {}
}

fn keep_warnings() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&WARNINGS).unwrap();
        log::set_max_level(log::LevelFilter::Warn);
    });
}

/// Whether the log has a warning with this in it.
fn warned(what: &str) -> bool {
    WARNINGS.0.lock().iter().any(|line| line.contains(what))
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(15), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Reads one record; the number of its event.
fn record(file: &mut File) -> io::Result<String> {
    let mut buf = [0; 4096];
    let got = file.read(&mut buf)?;
    let text = String::from_utf8_lossy(&buf[..got]).into_owned();
    let seq = text.strip_prefix("seq=").and_then(|rest| rest.split(' ').next());
    seq.map(str::to_owned).ok_or_else(|| io::Error::other(format!("no record: {text:?}")))
}

/// What somebody does with a mount; the files that are open in the end, one with an event that is held.
struct Session<'a> {
    mounted: &'a Mounted,
    failed: Vec<(&'static str, io::Error)>,
    open: Vec<File>,
    /// What the error of the call that fails says.
    error: String,
}

impl Session<'_> {
    fn step<T>(&mut self, what: &'static str, step: impl FnOnce(&Mounted) -> io::Result<T>) -> Option<T> {
        step(self.mounted).map_err(|error| self.failed.push((what, error))).ok()
    }

    fn write(&mut self, what: &'static str, name: &str, text: &str) {
        self.step(what, |mounted| fs::write(mounted.path().join(name), text));
    }

    fn observe(&mut self, name: &str) {
        let open = |mounted: &Mounted| File::open(mounted.path().join(name));
        if let Some(mut file) = self.step("open to observe", open) {
            self.step("observe", |_| record(&mut file));
            self.open.push(file);
        }
    }

    /// Answers some events, and leaves the last held.
    fn control(&mut self) {
        let open = |mounted: &Mounted| {
            let path = mounted.path().join("events/cr3,vcpu=0,dir=to");
            File::options().read(true).write(true).open(path)
        };
        let Some(mut file) = self.step("open to control", open) else { return };
        for answer in ["continue", "step", "view=0", "continue"] {
            let Some(seq) = self.step("read an event", |_| record(&mut file)) else { continue };
            let mut say = |answer: &str| file.write(format!("{seq} {answer}\n").as_bytes()).map(drop);
            // What is refused is still held, and can be answered again. Switched to the same view, it is raised again.
            if self.step("answer", |_| say(answer)).is_none() {
                self.step("answer again", |_| say("continue"));
            }
        }
        self.step("hold an event", |_| record(&mut file));
        self.open.push(file);
    }

    fn views(&mut self) {
        self.step("mkdir", |mounted| fs::create_dir(mounted.path().join("views/a")));
        self.write("a rule", "views/a/access", "0x800000-0x900000 r-x");
        self.write("a copy and another frame", "views/a/remap", "0x800000 copy\n0x801000 0x802000");
        self.write("the copy dropped", "views/a/remap", "0x800000 0x803000");
        self.step("the memory of a view", |mounted| {
            let file = File::options().read(true).write(true).open(mounted.path().join("views/a/mem"))?;
            file.write_all_at(b"hidden", 0x80_0000)?;
            file.read_exact_at(&mut [0; 16], 0x80_0000)
        });
        self.write("one vCPU switched", "vcpu/1/view", "a");
        self.step("the view of all", |mounted| fs::read(mounted.path().join("view")));
        self.write("all switched back", "view", "0");
        self.step("rmdir", |mounted| fs::remove_dir(mounted.path().join("views/a")));
    }

    /// Closes the observer of interrupts: the last close disarms, or says in the log that it could not.
    fn disarm(&mut self) {
        if self.failed.is_empty() && self.open.len() == 3 {
            drop(self.open.remove(1));
            let late = Instant::now() + Duration::from_secs(2);
            let told = || warned(&self.error);
            let stats = || fs::read_to_string(self.mounted.path().join("events/stats")).unwrap();
            while !told() && stats().contains("interrupt armed=1") {
                assert!(Instant::now() < late, "neither disarmed nor told");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Nothing but events.
    fn events(&mut self) {
        self.observe("events/cr3");
        self.control();
    }

    fn all(&mut self) {
        self.observe("events/cr3");
        self.observe("events/interrupt,vcpu=1");
        self.control();
        self.views();
        let rule = "events/slat,gpa=0x800000-0x801000,access=w";
        self.step("a file that is a rule", |mounted| File::open(mounted.path().join(rule)));
        self.write("inject", "vcpu/1/inject", "nmi");
        self.write("a rule that stays", "views/0/access", "0x800000-0x900000 r-- deny");
        self.step("a view that stays", |mounted| fs::create_dir(mounted.path().join("views/b")));
        self.write("and is run on", "vcpu/1/view", "b");
        self.disarm();
    }
}

/// The VM is as if nobody had been there.
fn assert_given_back(faults: &Faults, inner: &Inner, what: &str) {
    assert_eq!(inner.state(), RunState::Running, "{what}");
    let made = faults.made();
    assert_eq!(made.wanted, Wanted::default(), "{what} leaves it armed");
    assert_eq!(faults.held(), 0, "{what} leaves vCPUs held");
    assert!(made.views.is_empty(), "{what} leaves views: {:?}", made.views);
    for vcpu in 0..2 {
        assert_eq!(inner.view(vcpu), ViewId(0), "{what}, vCPU {vcpu}");
        let before = inner.ticks(vcpu);
        wait_until(&format!("vCPU {vcpu} runs after {what}"), || inner.ticks(vcpu) != before);
    }
}

type Run = fn(&mut Session<'_>);

/// One session with this fault; whether it came to it.
fn one(run: Run, call: Call, nth: u64) -> bool {
    let what = format!("{call:?} {nth} failing");
    let faults = Faults::of(call, nth);
    let (faulty, inner) = Faulty::over_emu(faults.clone());
    let mounted = Mounted::with(faulty, "threads=4,reply_timeout=10");
    let mut session =
        Session { mounted: &mounted, failed: Vec::new(), open: Vec::new(), error: faults.error() };
    run(&mut session);
    let Session { failed, open, .. } = session;
    // The mount ends while the event is held and the observer is there.
    mounted.answer_waiting();
    mounted.tree().release(false);
    assert_given_back(&faults, &inner, &what);
    drop(open);
    mounted.end();
    let told = warned(&faults.error());
    if !faults.struck() {
        assert!(failed.is_empty() && !told, "a session without a fault: {failed:?}");
        return false;
    }
    let looked = matches!(call, Call::Look);
    assert!(told || looked || !failed.is_empty(), "{what} was told to nobody");
    println!("{what}: {failed:?}{}", if told { ", logged" } else { "" });
    true
}

/// Runs it in a thread, which must end.
fn within(limit: Duration, what: String, run: impl FnOnce() -> bool + Send + 'static) -> bool {
    let (sender, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let _ = sender.send(run());
    });
    match ended.recv_timeout(limit) {
        Ok(told) => told,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what} hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => std::panic::resume_unwind(thread.join().unwrap_err()),
    }
}

/// Sessions with a fault in each of these calls, until one does not come to it; how many did.
fn each(run: Run, call: Call, calls: impl Iterator<Item = u64>) -> usize {
    keep_warnings();
    let mut calls = calls.take_while(|nth| {
        let nth = *nth;
        within(Duration::from_secs(40), format!("{call:?} {nth}"), move || one(run, call, nth))
    });
    calls.by_ref().count()
}

#[test]
fn whichever_call_about_events_and_views_fails_all_is_given_back() {
    if possible("whichever_call_about_events_and_views_fails_all_is_given_back") {
        let made = each(|session| session.all(), Call::Plain, 0..);
        assert!(made > 20, "only {made} calls were made: the session tests too little");
        // Nothing that comes after the end of events makes good for it.
        let made = each(|session| session.events(), Call::Plain, 0..);
        assert!(made > 2, "{made}");
    }
}

#[test]
fn whichever_look_at_a_view_fails_all_is_given_back() {
    if possible("whichever_look_at_a_view_fails_all_is_given_back") {
        let made = each(|session| session.all(), Call::Look, 0..);
        assert!(made > 3, "{made}");
    }
}

#[test]
fn whenever_the_next_event_fails_to_come_all_is_given_back() {
    if possible("whenever_the_next_event_fails_to_come_all_is_given_back") {
        // How many there are is a matter of time.
        let made = each(|session| session.all(), Call::Next, [0, 1, 2, 3, 5, 7, 9, 12, 15].into_iter());
        assert!(made > 5, "{made}");
    }
}

#[test]
fn whichever_answer_fails_all_is_given_back() {
    if possible("whichever_answer_fails_all_is_given_back") {
        let made = each(|session| session.all(), Call::Reply, 0..16);
        assert!(made >= 5, "{made}");
    }
}

/// A mount with an event that is held on each vCPU, by files whose numbers come along.
fn holding(faults: &Faults, options: &str) -> (Mounted, Inner, Vec<(File, String)>) {
    let (faulty, inner) = Faulty::over_emu(faults.clone());
    // Busy, so that the next tick meets each of them at once.
    let mailbox = Mailbox::new(inner.clone());
    mailbox.wait_running(Duration::from_secs(10)).unwrap();
    for vcpu in [0, 1] {
        let seq = mailbox.post(vcpu, Op::Spin, &[1 << 40]).unwrap();
        wait_until("it spins", || mailbox.word(slot_of(vcpu) + slot::BEGUN).unwrap() == seq);
    }
    let mounted = Mounted::with(faulty, options);
    let files = [0, 1].map(|vcpu| {
        let path = mounted.path().join(format!("events/interrupt,vcpu={vcpu}"));
        let mut file = File::options().read(true).write(true).open(path).unwrap();
        let seq = record(&mut file).unwrap();
        (file, seq)
    });
    (mounted, inner, files.into())
}

/// What calls the driver and may wait for it, as a shell does it.
const HANGING: &[&str] = &[
    "exec cat events/msr",
    "exec mkdir views/x",
    "echo nmi > vcpu/1/inject",
    "echo 0 > vcpu/1/view",
    "echo '0x800000-0x900000 r-x' > views/0/access",
    "exec head -c 16 views/0/mem",
    "exec cat vcpu/0/regs/all",
];

#[test]
fn calls_that_hang_keep_no_answer_and_no_unmount_waiting() {
    if !possible("calls_that_hang_keep_no_answer_and_no_unmount_waiting") {
        return;
    }
    let faults = Faults::nth(u64::MAX);
    let (mounted, inner, mut files) = holding(&faults, "threads=4,reply_timeout=30");
    faults.hang(true);
    let here = mounted.path().display().to_string();
    let mut stuck: Vec<_> =
        HANGING.iter().map(|script| Stuck::start(&format!("cd {here}; {script}"))).collect();
    // Some wait for a lock that another has.
    wait_until("calls hang", || faults.hung() >= 3);
    for _ in 0..20 {
        let begun = Instant::now();
        for (file, seq) in &mut files {
            file.write_all(format!("{seq} continue\n").as_bytes()).unwrap();
            *seq = record(file).unwrap();
        }
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
    // The end: who waits is answered, and who is held let go, while the driver hangs.
    let begun = Instant::now();
    mounted.answer_waiting();
    let tree = mounted.tree();
    std::thread::scope(|scope| {
        let release = scope.spawn(|| tree.release(false));
        for child in &mut stuck {
            child.ends_within(Duration::from_secs(5));
        }
        for vcpu in 0..2 {
            let before = inner.ticks(vcpu);
            wait_until("it runs on", || inner.ticks(vcpu) != before);
        }
        println!("everybody answered and let go in {:?}", begun.elapsed());
        faults.hang(false);
        release.join().unwrap();
    });
    assert_given_back(&faults, &inner, "a driver that hangs");
    drop(files);
    mounted.end();
}

#[test]
fn the_death_of_the_vm_lets_everybody_go() {
    if !possible("the_death_of_the_vm_lets_everybody_go") {
        return;
    }
    let faults = Faults::nth(u64::MAX);
    let (mounted, _, files) = holding(&faults, "threads=4,reply_timeout=30");
    assert_eq!(faults.held(), 2);
    let here = mounted.path().display().to_string();
    let mut readers: Vec<_> =
        (0..100).map(|_| Stuck::start(&format!("exec cat {here}/events/guest_request"))).collect();
    // Threads of this process that are blocked too.
    let blocked: Vec<_> = (0..10)
        .map(|_| {
            let mut file = File::open(mounted.path().join("events/descriptor")).unwrap();
            std::thread::spawn(move || file.read(&mut [0; 64]))
        })
        .collect();
    // They are about to read.
    wait_until("all readers are there", || {
        let stats = fs::read_to_string(mounted.path().join("events/stats")).unwrap();
        ["guest_request", "descriptor"].iter().all(|kind| stats.contains(&format!("{kind} armed=1")))
    });
    std::thread::sleep(Duration::from_millis(300));
    faults.gone();
    let begun = Instant::now();
    for reader in &mut readers {
        reader.ends_within(Duration::from_secs(5));
    }
    for reader in blocked {
        let end = reader.join().unwrap();
        assert!(
            matches!(end, Ok(0))
                || end.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ENODEV)),
            "{end:?}"
        );
    }
    println!("110 readers ended in {:?}", begun.elapsed());
    for (mut file, seq) in files {
        let answered = file.write(format!("{seq} continue\n").as_bytes());
        assert_eq!(answered.unwrap_err().raw_os_error(), Some(libc::ENODEV));
        let end = file.read(&mut [0; 4096]);
        assert!(
            matches!(end, Ok(0))
                || end.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ENODEV)),
            "{end:?}"
        );
    }
    let open = File::open(mounted.path().join("events/cr3")).unwrap_err();
    assert_eq!(open.raw_os_error(), Some(libc::ENODEV));
    let made = fs::create_dir(mounted.path().join("views/x")).unwrap_err();
    assert_eq!(made.raw_os_error(), Some(libc::ENODEV));
    assert_eq!(faults.held(), 0);
    mounted.end();
}
