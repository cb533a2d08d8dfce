//! What becomes of a VM when its driver fails, hangs or dies under a real mount: nothing stays paused, nobody stays
//! stuck, and every error reaches the caller.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod driver;
mod events;
mod mounted;
mod sessions;

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use driver::{Faults, Faulty};
use mounted::{Mounted, possible};
use vmtree_api::RunState;

/// What a user may do in a session; each step may fail, none may hang or panic.
fn session(mounted: &Mounted) -> Vec<std::io::Result<()>> {
    let path = |name: &str| mounted.path().join(name);
    let write = |name: &str, text: &str| fs::write(path(name), text);
    vec![
        fs::File::open(path("mem")).and_then(|mut file| file.read_exact(&mut [0; 8192])),
        write("ctl", "pause"),
        fs::read(path("vcpu/0/regs/all")).map(drop),
        // Registers that the guest does not live by.
        write("vcpu/0/regs/all", "cr2=7 dr0=8"),
        write("vcpu/0/ctl", "step 2"),
        fs::read(path("vcpu/0/translate,gva=0x1000")).map(drop),
        fs::read(path("state")).map(drop),
        write("ctl", "resume"),
        write("ctl", "pause"),
    ]
}

#[test]
fn whichever_call_fails_the_vm_is_given_back() {
    if !possible("whichever_call_fails_the_vm_is_given_back") {
        return;
    }
    let mut untouched = 0;
    for nth in 0.. {
        let faults = Faults::nth(nth);
        let (faulty, inner) = Faulty::over_emu(faults.clone());
        let mounted = Mounted::new(faulty);
        let failed = session(&mounted).iter().filter(|step| step.is_err()).count();
        // The mount ends while it still holds its own pause.
        mounted.end();
        assert_eq!(inner.state(), RunState::Running, "paused for ever after call {nth} failed");
        if !faults.struck() {
            assert_eq!(failed, 0, "a session without a fault");
            untouched = nth;
            break;
        }
        assert!(failed <= 3, "one failing call ({nth}) spoils {failed} steps");
    }
    assert!(untouched > 10, "only {untouched} calls were made: the session tests too little");
}

#[test]
fn registers_are_set_together_or_not_at_all_when_the_driver_fails() {
    if !possible("registers_are_set_together_or_not_at_all_when_the_driver_fails") {
        return;
    }
    for nth in 0..4 {
        let faults = Faults::nth(u64::MAX);
        let (faulty, inner) = Faulty::over_emu(faults.clone());
        let mounted = Mounted::new(faulty);
        fs::write(mounted.path().join("ctl"), "pause").unwrap();
        fs::write(mounted.path().join("vcpu/0/regs/all"), "r14=1 r15=1").unwrap();
        faults.strike_at(nth);
        let written = fs::write(mounted.path().join("vcpu/0/regs/all"), "r14=2 r15=2");
        let (r14, r15) = inner.r14_r15();
        let wanted = if written.is_ok() { 2 } else { 1 };
        assert_eq!((r14, r15), (wanted, wanted), "call {nth}");
        mounted.end();
    }
}

/// A child that is stuck in a request; killed if the test ends early.
struct Stuck(Child);

impl Stuck {
    fn start(command: &str) -> Self {
        let child =
            Command::new("sh").args(["-c", command]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self(child.expect("sh"))
    }

    /// Waits for its end; how long that took.
    fn ends_within(&mut self, limit: Duration) -> Duration {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if self.0.try_wait().expect("a child").is_some() {
                return begun.elapsed();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("still there after {limit:?}");
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Every request that can be parked, as a shell would make it.
const PARKED: &[&str] = &[
    "exec cat vcpu/0/regs/rip",
    "exec cat vcpu/0/regs/all",
    "exec cat vcpu/0/translate,gva=0",
    "exec head -c 8 vcpu/0/vmem",
    "exec dd if=vcpu/0/msr bs=8 count=1 iflag=skip_bytes skip=3221225602",
    "exec cat state",
    "exec dd if=/dev/zero of=vcpu/0/regs/rax conv=notrunc",
    "exec tee ctl <verb",
    "exec tee vcpu/0/ctl <step",
];

#[test]
fn a_caller_killed_in_any_parked_request_is_gone_at_once() {
    if !possible("a_caller_killed_in_any_parked_request_is_gone_at_once") {
        return;
    }
    for signal in ["KILL", "INT", "TERM"] {
        let faults = Faults::nth(u64::MAX);
        let (faulty, inner) = Faulty::over_emu(faults.clone());
        let mounted = Mounted::new(faulty);
        let texts = tempfile::tempdir().unwrap();
        fs::write(texts.path().join("verb"), "pause").unwrap();
        fs::write(texts.path().join("step"), "step").unwrap();
        faults.hang(true);
        for command in PARKED {
            let command = command.replace("<verb", &format!("<{}/verb", texts.path().display()));
            let command = command.replace("<step", &format!("<{}/step", texts.path().display()));
            let hung = faults.hung();
            let mut stuck = Stuck::start(&format!("cd {}; {command}", mounted.path().display()));
            let begun = Instant::now();
            while faults.hung() == hung {
                assert!(begun.elapsed() < Duration::from_secs(5), "{command} never reached the driver");
                std::thread::sleep(Duration::from_millis(2));
            }
            let pid = stuck.0.id().to_string();
            assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
            let took = stuck.ends_within(Duration::from_secs(1));
            println!("{signal} {command}: {} ms", took.as_millis());
        }
        faults.hang(false);
        // The others are served as ever, and what the killed ones did is undone with the mount.
        fs::read(mounted.path().join("vcpu/0/regs/rip")).unwrap();
        mounted.end();
        assert_eq!(inner.state(), RunState::Running);
    }
}

#[test]
fn nobody_waits_longer_than_the_reply_timeout() {
    if !possible("nobody_waits_longer_than_the_reply_timeout") {
        return;
    }
    let faults = Faults::nth(u64::MAX);
    let (faulty, _) = Faulty::over_emu(faults.clone());
    let mounted = Mounted::with(faulty, "reply_timeout=0.3");
    faults.hang(true);
    let begun = Instant::now();
    let error = fs::read(mounted.path().join("vcpu/0/regs/rip")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
    assert!(begun.elapsed() < Duration::from_secs(3));
    // A file that needs no call to the VM is served meanwhile.
    fs::read(mounted.path().join("info")).unwrap();
    faults.hang(false);
    mounted.end();
}

#[test]
fn what_its_caller_gave_up_is_not_done_later_and_errors_tells() {
    if !possible("what_its_caller_gave_up_is_not_done_later_and_errors_tells") {
        return;
    }
    let faults = Faults::nth(u64::MAX);
    let (faulty, inner) = Faulty::over_emu(faults.clone());
    let mounted = Mounted::with(faulty, "reply_timeout=1");
    faults.hang(true);
    // As many as there are workers; what comes then waits for its turn, and its caller does not wait so long.
    let path = mounted.path().join("vcpu/0/regs/all");
    let reader = || {
        let path = path.clone();
        std::thread::spawn(move || fs::read(path).unwrap_err().raw_os_error())
    };
    let readers: Vec<_> = (0..64).map(|_| reader()).collect();
    let begun = Instant::now();
    while faults.hung() < 64 {
        assert!(begun.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(2));
    }
    for (name, text) in [("vcpu/0/regs/r14", "0x77"), ("ctl", "pause")] {
        let told = fs::write(mounted.path().join(name), text).unwrap_err();
        assert_eq!(told.raw_os_error(), Some(libc::ETIMEDOUT), "{name}");
    }
    for reader in readers {
        assert_eq!(reader.join().unwrap(), Some(libc::ETIMEDOUT));
    }
    let errors = fs::read_to_string(mounted.path().join("errors")).unwrap();
    let last = errors.lines().last().unwrap();
    assert!(last.contains("path=ctl errno=ETIMEDOUT why=wait: no answer within 1 s"), "{last}");
    faults.hang(false);
    // A worker that is free again comes to this after all that was given up.
    std::thread::sleep(Duration::from_millis(200));
    fs::read(mounted.path().join("vcpu/0/regs/rip")).unwrap();
    assert_eq!(faults.hung(), 64, "a request without a caller was carried out");
    assert_ne!(inner.r14_r15().0, 0x77);
    assert_eq!(inner.state(), RunState::Running);
    mounted.end();
}

#[test]
fn a_pause_that_comes_too_late_is_taken_back() {
    if !possible("a_pause_that_comes_too_late_is_taken_back") {
        return;
    }
    let faults = Faults::nth(u64::MAX);
    let (faulty, inner) = Faulty::over_emu(faults.clone());
    let mounted = Mounted::with(faulty, "reply_timeout=0.3");
    faults.hang(true);
    let told = fs::write(mounted.path().join("ctl"), "pause").unwrap_err();
    assert_eq!(told.raw_os_error(), Some(libc::ETIMEDOUT));
    faults.hang(false);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(inner.state(), RunState::Running);
    mounted.end();
}

#[test]
fn a_pause_stops_a_vm_that_somebody_else_let_run() {
    if !possible("a_pause_stops_a_vm_that_somebody_else_let_run") {
        return;
    }
    let (faulty, inner) = Faulty::over_emu(Faults::nth(u64::MAX));
    let mounted = Mounted::new(faulty);
    let ctl = mounted.path().join("ctl");
    fs::write(&ctl, "pause").unwrap();
    inner.force_resume();
    assert_eq!(inner.state(), RunState::Running);
    fs::write(&ctl, "pause").unwrap();
    assert_eq!(inner.state(), RunState::Paused);
    fs::write(&ctl, "resume").unwrap();
    assert_eq!(inner.state(), RunState::Running);
    mounted.end();
}

#[test]
fn a_block_stays_itself_when_another_is_plugged_in() {
    if !possible("a_block_stays_itself_when_another_is_plugged_in") {
        return;
    }
    let faults = Faults::nth(u64::MAX);
    let (faulty, _) = Faulty::over_emu(faults.clone());
    let mounted = Mounted::new(faulty);
    let read = |name: &str| {
        let mut bytes = [0; 16];
        fs::File::open(mounted.path().join(name)).and_then(|file| file.read_exact_at(&mut bytes, 0)).unwrap();
        bytes
    };
    fs::write(mounted.path().join("ctl"), "pause").unwrap();
    for (name, byte) in [("ram/low", b'L'), ("ram/high", b'H')] {
        fs::OpenOptions::new()
            .write(true)
            .open(mounted.path().join(name))
            .and_then(|file| file.write_all_at(&[byte; 16], 0))
            .unwrap();
    }
    // By its name it comes before the others.
    faults.plug("dimm", &[b'D'; 4096]);
    assert_eq!((read("ram/low"), read("ram/high")), ([b'L'; 16], [b'H'; 16]));
    assert_eq!(read("ram/dimm"), [b'D'; 16]);
    assert_eq!(fs::metadata(mounted.path().join("ram/dimm")).unwrap().len(), 4096);
    let mut names: Vec<_> =
        fs::read_dir(mounted.path().join("ram")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["dimm", "high", "low"]);
    faults.unplug();
    assert_eq!((read("ram/low"), read("ram/high")), ([b'L'; 16], [b'H'; 16]));
    let gone = fs::File::open(mounted.path().join("ram/dimm")).unwrap_err();
    assert_eq!(gone.raw_os_error(), Some(libc::ENOENT));
    mounted.end();
}

#[test]
fn the_end_of_the_mount_answers_everybody_who_waits() {
    if !possible("the_end_of_the_mount_answers_everybody_who_waits") {
        return;
    }
    let faults = Faults::nth(u64::MAX);
    let (faulty, inner) = Faulty::over_emu(faults.clone());
    let mounted = Mounted::with(faulty, "reply_timeout=600");
    fs::write(mounted.path().join("ctl"), "pause").unwrap();
    faults.hang(true);
    let mut stuck: Vec<Stuck> = (0..8)
        .map(|_| Stuck::start(&format!("exec cat {}", mounted.path().join("vcpu/0/regs/all").display())))
        .collect();
    let begun = Instant::now();
    while faults.hung() < 8 {
        assert!(begun.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(2));
    }
    mounted.answer_waiting();
    for child in &mut stuck {
        child.ends_within(Duration::from_secs(2));
    }
    faults.hang(false);
    mounted.end();
    assert_eq!(inner.state(), RunState::Running);
}

#[test]
fn a_vm_that_is_gone_is_told_as_enodev() {
    if !possible("a_vm_that_is_gone_is_told_as_enodev") {
        return;
    }
    let faults = Faults::nth(u64::MAX);
    let (faulty, _) = Faulty::over_emu(faults.clone());
    let mounted = Mounted::new(faulty);
    faults.gone();
    for step in session(&mounted) {
        assert_eq!(step.unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
    mounted.end();
}
