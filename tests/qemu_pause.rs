//! A paused QEMU runs again whatever becomes of the mount that paused it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "labs/qemu/lab.rs"]
mod qemu;

use std::thread::sleep;
use std::time::Duration;

use common::live::{Live, skip};
use common::{alive, family, kill, processes, wait_until};
use qemu::Vm;

/// A VM and its mount.
fn mounted(test: &str) -> Option<(Vm, Live)> {
    if !qemu::have_qemu() {
        skip(test, "QEMU is not installed");
        return None;
    }
    let vm = Vm::start(&["-accel", "tcg", "-m", "64M", "-action", "reboot=reset"]);
    let live = Live::mount(test, &format!("qemu:{}", vm.qmp()), "")?;
    Some((vm, live))
}

fn status(vm: &mut Vm) -> String {
    vm.human("info status").trim().replace("VM status: ", "")
}

/// The daemon that serves this mount.
fn daemon(live: &Live) -> u32 {
    let path = live.path("");
    let path = path.to_str().unwrap().trim_end_matches('/').to_owned();
    let serves = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.starts_with("vmtree\0serve\0") && line.contains(&path)
    };
    processes().find(serves).unwrap()
}

#[test]
fn ctl_pauses_and_resumes_the_vm_and_state_tells() {
    let Some((mut vm, live)) = mounted("ctl_pauses_and_resumes_the_vm_and_state_tells") else { return };
    assert_eq!((live.text("state"), status(&mut vm)), ("running\n".to_owned(), "running".to_owned()));
    live.write("ctl", "pause\n").unwrap();
    assert_eq!((live.text("state"), status(&mut vm)), ("paused\n".to_owned(), "paused".to_owned()));
    live.write("ctl", "resume\n").unwrap();
    assert_eq!((live.text("state"), status(&mut vm)), ("running\n".to_owned(), "running".to_owned()));
    // Paused by somebody else.
    vm.human("stop");
    live.write("ctl", "pause\n").unwrap();
    assert_eq!(live.write("ctl", "resume\n").unwrap_err().raw_os_error(), Some(libc::EBUSY));
    assert_eq!((live.text("state"), status(&mut vm)), ("paused\n".to_owned(), "paused".to_owned()));
    live.write("ctl", "resume force\n").unwrap();
    assert_eq!((live.text("state"), status(&mut vm)), ("running\n".to_owned(), "running".to_owned()));
}

#[test]
fn an_unmounted_vm_runs_again() {
    let Some((mut vm, live)) = mounted("an_unmounted_vm_runs_again") else { return };
    live.write("ctl", "pause\n").unwrap();
    drop(live);
    assert_eq!(status(&mut vm), "running");
}

#[test]
fn a_killed_daemon_leaves_the_vm_running_and_nothing_mounted() {
    const TEST: &str = "a_killed_daemon_leaves_the_vm_running_and_nothing_mounted";
    let Some((mut vm, live)) = mounted(TEST) else { return };
    live.write("ctl", "pause\n").unwrap();
    assert_eq!(status(&mut vm), "paused");
    kill(daemon(&live), 9);
    wait_until("the VM runs again", || status(&mut vm) == "running");
    live.gone();
}

#[test]
fn a_killed_daemon_leaves_the_pause_of_somebody_else() {
    const TEST: &str = "a_killed_daemon_leaves_the_pause_of_somebody_else";
    let Some((mut vm, live)) = mounted(TEST) else { return };
    vm.human("stop");
    live.write("ctl", "pause\n").unwrap();
    kill(daemon(&live), 9);
    live.gone();
    sleep(Duration::from_millis(300));
    assert_eq!(status(&mut vm), "paused");
}

#[test]
fn a_killed_qemu_ends_a_paused_mount() {
    let Some((mut vm, live)) = mounted("a_killed_qemu_ends_a_paused_mount") else { return };
    live.write("ctl", "pause\n").unwrap();
    vm.kill();
    live.gone();
}

/// Maybe before we have heard of it.
#[test]
fn a_killed_daemon_leaves_running_what_a_manager_has_resumed() {
    let Some((mut vm, live)) = mounted("a_killed_daemon_leaves_running_what_a_manager_has_resumed") else {
        return;
    };
    live.write("ctl", "pause\n").unwrap();
    vm.human("cont");
    kill(daemon(&live), 9);
    live.gone();
    sleep(Duration::from_millis(300));
    assert_eq!(status(&mut vm), "running");
    vm.human("stop");
    sleep(Duration::from_millis(1500));
    assert_eq!(status(&mut vm), "paused", "nobody is there to resume it");
}

/// What the manager does in our pause, and what the VM must be after the daemon's death.
fn in_our_pause(test: &str, lines: &[&str], guardians_late: bool, then: &str) {
    let Some((mut vm, live)) = mounted(test) else { return };
    // Its firmware has set up the timer by then.
    wait_until("the firmware runs", || vm.human("info mtree -f").contains("acpi-tmr"));
    live.write("ctl", "pause\n").unwrap();
    let daemon = daemon(&live);
    let guardians = common::guardians(daemon);
    if guardians_late {
        guardians.iter().for_each(|&pid| kill(pid, 19));
        kill(daemon, 9);
    }
    lines.iter().for_each(|line| drop(vm.human(line)));
    if guardians_late {
        guardians.iter().for_each(|&pid| kill(pid, 18));
    } else {
        kill(daemon, 9);
    }
    live.gone();
    wait_until("the guardians are gone", || !guardians.iter().any(|&pid| alive(pid)));
    let now = status(&mut vm);
    assert!(now.starts_with(then), "{lines:?}, guardians late: {guardians_late}: {now}");
}

#[test]
fn a_killed_daemon_leaves_stopped_what_a_manager_has_resumed_and_stopped() {
    for late in [false, true] {
        in_our_pause("a_manager_resumes_and_stops", &["cont", "stop"], late, "paused");
    }
}

#[test]
fn a_killed_daemons_pause_ends_also_where_the_vm_was_reset_in_it() {
    for late in [false, true] {
        in_our_pause("a_reset_in_our_pause", &["system_reset"], late, "running");
        in_our_pause("nothing_in_our_pause", &[], late, "running");
    }
}

/// Daemons that are killed in a run of the test below; VMTREE_KILLS overrides it.
const KILLS: u32 = 24;

/// Numbers that are the same in each run (xorshift, G. Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What the daemon is at when it is killed.
#[derive(Clone, Copy, Debug)]
enum Work {
    Read,
    Write,
    Step,
}

impl Work {
    fn once(self, live: &Live) -> std::io::Result<()> {
        match self {
            Self::Read => std::fs::read(live.path("vcpu/0/regs/all")).map(drop),
            Self::Write => live.write("vcpu/0/regs/cr2", "0x1000\n").map(drop),
            Self::Step => live.write("vcpu/0/ctl", "step 20\n").map(drop),
        }
    }

    /// Until the mount is dead.
    fn go_on(self, live: &Live) {
        while !matches!(self.once(live).err().and_then(|error| error.raw_os_error()), Some(errno) if [
            libc::ENOTCONN,
            libc::ECONNABORTED,
            libc::ENOENT,
        ]
        .contains(&errno))
        {}
    }
}

/// The folders for gdbstubs of a daemon.
fn folders(daemon: u32) -> usize {
    let ours = format!("vmtree-gdb-{daemon}-");
    let entries = std::fs::read_dir("/tmp").unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(&ours)).count()
}

#[test]
fn the_next_mount_removes_the_folder_of_one_that_was_killed_whole_together_with_its_vm() {
    const TEST: &str = "the_next_mount_removes_the_folder_of_a_killed_one";
    let Some((mut vm, live)) = mounted(TEST) else { return };
    live.text("vcpu/0/regs/all");
    let daemon = daemon(&live);
    assert_eq!(folders(daemon), 1);
    let pids = family(daemon);
    // Stopped, so that it starts no new guardian in between.
    kill(daemon, 19);
    pids.iter().for_each(|&pid| kill(pid, 9));
    vm.kill();
    wait_until("all are gone", || !pids.iter().any(|&pid| alive(pid)));
    drop(live);
    let Some((_vm, _live)) = mounted(TEST) else { return };
    assert_eq!(folders(daemon), 0);
}

#[test]
fn daemons_killed_within_reads_writes_and_steps_leave_the_vm_as_its_manager_left_it() {
    const TEST: &str = "daemons_killed_within_reads_writes_and_steps";
    if !qemu::have_qemu() {
        return skip(TEST, "QEMU is not installed");
    }
    let folder = tempfile::tempdir().unwrap();
    let elf = folder.path().join("guest.elf");
    std::fs::write(&elf, vmtree_guest::elf()).unwrap();
    let mut vm = Vm::start(&["-accel", "tcg", "-m", "64M", "-kernel", elf.to_str().unwrap()]);
    wait_until("the guest runs 64-bit code", || vm.human("info registers").contains("CS64"));
    let kills = std::env::var("VMTREE_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let (mut random, mut left, mut litter) = (Random(0x9e37_79b9_7f4a_7c15), Vec::new(), 0);
    for round in 0..kills {
        let work = [Work::Read, Work::Write, Work::Read, Work::Step][round as usize % 4];
        let by_manager = round % 5 == 4;
        let Some(live) = Live::mount(TEST, &format!("qemu:{}", vm.qmp()), "") else { return };
        let daemon = daemon(&live);
        let pids = family(daemon);
        if by_manager && (round % 2 == 0 || matches!(work, Work::Step)) {
            vm.human("stop");
        }
        if matches!(work, Work::Step) {
            live.write("ctl", "pause\n").unwrap();
        }
        work.once(&live).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| work.go_on(&live));
            // One that comes while a snapshot holds the VM stopped is lost (docs/qemu.md); the first that is not holds.
            for _ in 0..if by_manager { 30 } else { 0 } {
                sleep(Duration::from_micros(random.below(2_000)));
                vm.human("stop");
            }
            sleep(Duration::from_micros(random.below(30_000)));
            kill(daemon, 9);
        });
        live.gone();
        wait_until("the guardians are gone", || !pids.iter().any(|&pid| alive(pid)));
        sleep(Duration::from_millis(20));
        let now = status(&mut vm);
        if now.starts_with("running") == by_manager {
            left.push(format!("{round}: {work:?}, stopped by its manager: {by_manager}, is {now}"));
        }
        litter += folders(daemon);
        vm.human("cont");
    }
    let Some(live) = Live::mount(TEST, &format!("qemu:{}", vm.qmp()), "") else { return };
    let mailbox = vmtree_guest::Mailbox::new(live.open("mem"));
    let ticks = || mailbox.counters(0).unwrap().get(vmtree_guest::mailbox::Counter::Ticks);
    let before = ticks();
    wait_until("the guest's ticks move", || ticks() > before + 5);
    assert!(left.is_empty(), "{} of {kills}: {left:#?}", left.len());
    assert_eq!(litter, 0, "folders are left");
}
