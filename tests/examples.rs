//! The scripts of docs/examples, each run as written on a real mount of the built-in machine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use common::live::{Live, has};
use common::{kill, wait_until};
use vmtree_guest::layout::{CODE, GREETING, SCRATCH};
use vmtree_guest::mailbox::{Counter, Op};
use vmtree_guest::{Mailbox, Outcome};

const PATIENCE: Duration = Duration::from_secs(20);

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples")
}

/// A script at work on a mount, ended with the test.
struct Script(Option<Child>);

impl Script {
    fn start(live: &Live, script: &str, arguments: &[&str]) -> Self {
        let mut command = live.command("timeout");
        command.arg("60").arg(folder().join(script)).arg(live.path("")).args(arguments);
        Self(Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()))
    }

    /// Sends it SIGTERM.
    fn terminate(&self) {
        kill(self.0.as_ref().unwrap().id(), libc::SIGTERM);
    }

    /// Waits for its end, and returns what it printed.
    fn lines(mut self) -> Vec<String> {
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && told.is_empty(), "{}\n{told}", output.status);
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn guest(live: &Live) -> Mailbox<fs::File> {
    let mailbox = Mailbox::new(live.open("mem"));
    mailbox.wait_running(PATIENCE).unwrap();
    mailbox
}

fn done(outcome: Outcome) -> u64 {
    match outcome {
        Outcome::Done([result, ..]) => result,
        other => panic!("{other:?}"),
    }
}

/// A mount with one more than the programs that every script takes, unless something is missing.
fn mounted(script: &str, needs: &[&str]) -> Option<Live> {
    if !needs.iter().all(|program| has(script, program)) {
        return None;
    }
    Live::mount(script, "emu:ram=64M,vcpus=2", "")
}

/// What the script has open is armed, as `events/stats` tells.
fn wait_armed(live: &Live, kind: &str) {
    let armed = |line: &str| line.starts_with(&format!("{kind} ")) && !line.contains("armed=0");
    wait_until("the script listens", || live.text("events/stats").lines().any(armed));
}

#[test]
fn process_switches_are_counted() {
    let Some(live) = mounted("process-switches.sh", &["bash"]) else { return };
    let guest = guest(&live);
    let lines = Script::start(&live, "process-switches.sh", &["120"]).lines();
    let counts: Vec<(u64, String)> = lines
        .iter()
        .map(|line| line.trim().split_once(' ').unwrap())
        .map(|(count, new)| (count.parse().unwrap(), new.to_owned()))
        .collect();
    assert_eq!(counts.iter().map(|(count, _)| count).sum::<u64>(), 120, "{lines:?}");
    for process in [0, 1] {
        let cr3 = format!("new={:#018x}", guest.process_cr3(0, process).unwrap());
        assert!(counts.iter().any(|(_, new)| *new == cr3), "{cr3} in {lines:?}");
    }
}

#[test]
fn system_calls_are_traced() {
    let Some(live) = mounted("syscalls.py", &["python3"]) else { return };
    let guest = guest(&live);
    let processes: Vec<String> = [(0, 0), (0, 1), (1, 0), (1, 1)]
        .map(|(vcpu, process)| format!("{:#018x}", guest.process_cr3(vcpu, process).unwrap()))
        .into();
    let lines = Script::start(&live, "syscalls.py", &["20"]).lines();
    assert_eq!(lines.len(), 20);
    for line in &lines {
        let (cr3, rest) = line.split_once(" syscall ").unwrap();
        assert!(processes.iter().any(|known| known == cr3) && rest.split(' ').count() == 4, "{line}");
    }
    assert!(live.text("views/0/access").is_empty(), "the rule went with its file");
}

#[test]
fn a_guarded_page_can_not_be_written() {
    let Some(live) = mounted("page-guard.sh", &["bash"]) else { return };
    let guest = guest(&live);
    let before = guest.word(SCRATCH).unwrap();
    let range = [format!("{SCRATCH:#x}"), format!("{:#x}", SCRATCH + 0x1000), "3".to_owned()];
    let script = Script::start(&live, "page-guard.sh", &range.each_ref().map(String::as_str));
    wait_armed(&live, "slat");
    let refused = before ^ 0x5a5a;
    guest.order(1, Op::Write, &[3, SCRATCH, refused, 8], PATIENCE).unwrap();
    assert_eq!(guest.word(SCRATCH).unwrap(), before);
    let lines = script.lines();
    let told = format!("gpa={SCRATCH:#018x}");
    assert!(lines.len() == 3 && lines.iter().all(|line| line.contains(&told)), "{lines:?}");
    guest.order(1, Op::Write, &[1, SCRATCH, refused, 8], PATIENCE).unwrap();
    assert_eq!(guest.word(SCRATCH).unwrap(), refused, "the guard has left");
}

#[test]
fn a_hook_is_hidden_from_the_guest() {
    let Some(live) = mounted("hidden-hook.py", &["python3"]) else { return };
    let guest = guest(&live);
    let first = done(guest.order(0, Op::Read, &[1, CODE, 1], PATIENCE).unwrap());
    let answer = done(guest.order(0, Op::Exec, &[1, CODE], PATIENCE).unwrap());
    let before = guest.counters(0).unwrap();
    let script = Script::start(&live, "hidden-hook.py", &[&format!("{CODE:#x}"), "5"]);
    wait_until("the hook is there", || live.text("view").trim() == "hook");
    assert_eq!(done(guest.order(0, Op::Exec, &[4, CODE], PATIENCE).unwrap()), answer);
    assert_eq!(done(guest.order(1, Op::Read, &[1, CODE, 1], PATIENCE).unwrap()), first, "it looks untouched");
    assert_eq!(done(guest.order(1, Op::Exec, &[1, CODE], PATIENCE).unwrap()), answer);
    let lines = script.lines();
    assert!(lines.len() == 5 && lines.iter().all(|line| line.starts_with("called on vCPU")), "{lines:?}");
    assert_eq!(live.text("view"), "0\n");
    assert!(!live.path("views/hook").exists());
    let background = guest.counters(0).unwrap().since(&before);
    assert_eq!(background.get(&Counter::OtherExceptions), None, "{background:?}");
}

#[test]
fn a_hook_that_is_ended_takes_its_view_away() {
    let Some(live) = mounted("hidden-hook.py", &["python3"]) else { return };
    let guest = guest(&live);
    let script = Script::start(&live, "hidden-hook.py", &[&format!("{CODE:#x}"), "5"]);
    wait_until("the hook is there", || live.text("view").trim() == "hook");
    // `timeout`, which Script runs, passes SIGTERM on.
    script.terminate();
    wait_until("the view is gone", || !live.path("views/hook").exists());
    assert_eq!(live.text("view"), "0\n");
    done(guest.order(0, Op::Exec, &[1, CODE], PATIENCE).unwrap());
}

#[test]
fn a_read_is_made_to_fault() {
    let Some(live) = mounted("fault-a-read.sh", &["bash"]) else { return };
    let guest = guest(&live);
    let range = [format!("{GREETING:#x}"), format!("{:#x}", GREETING + 0x1000)];
    let faults = |vcpu| guest.counters(vcpu).unwrap().get(Counter::PageFaults);
    guest.background(false, PATIENCE).unwrap();
    let before = faults(1);
    let script = Script::start(&live, "fault-a-read.sh", &range.each_ref().map(String::as_str));
    wait_armed(&live, "slat");
    let outcome = guest.order(1, Op::Read, &[1, GREETING, 8], PATIENCE).unwrap();
    let Outcome::Faulted { vector: 14, error: 4, cr2: GREETING, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(faults(1), before + 1);
    let lines = script.lines();
    let told = format!("vCPU 1 got a page fault at {GREETING:#018x} instead of the data");
    assert_eq!(lines, [told]);
}

#[test]
fn kinds_are_counted_by_jq() {
    let Some(live) = mounted("kinds.sh", &["bash", "jq"]) else { return };
    guest(&live);
    let lines = Script::start(&live, "kinds.sh", &["20000"]).lines();
    let sum: u64 =
        lines.iter().map(|line| line.trim().split(' ').next().unwrap().parse::<u64>().unwrap()).sum();
    assert!(sum <= 20_000 && sum > 15_000, "{lines:?}");
    for kind in ["vCPU 0 cr3", "vCPU 1 cr8", "vCPU 0 interrupt", "vCPU 1 singlestep"] {
        assert!(lines.iter().any(|line| line.ends_with(kind)), "{kind} in {lines:?}");
    }
}

#[test]
fn every_example_is_a_test_and_has_its_page() {
    let source = fs::read_to_string(file!()).unwrap();
    let names = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let scripts: Vec<PathBuf> = names.filter(|path| path.extension().is_some_and(|is| is != "md")).collect();
    assert!(scripts.len() >= 6);
    for script in scripts {
        let name = script.file_name().unwrap().to_str().unwrap();
        assert!(source.contains(&format!("Script::start(&live, \"{name}\"")), "{name} has no test");
        let page = fs::read_to_string(script.with_extension("md")).unwrap_or_default();
        assert!(page.contains(name), "{name} has no page that names it");
    }
}
