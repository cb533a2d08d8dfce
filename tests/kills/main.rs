//! Kills at random moments: of readers and controllers on a mount that lives on, and of the daemon itself. No vCPU stays
//! held, and no mount is left. `VMTREE_SEED` repeats a run, `VMTREE_KILLS` says how many.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod clients;
#[path = "../common/mod.rs"]
mod common;
mod random;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use clients::Client;
use common::{Lab, family, kill, lab, vmtree, wait_until};
use random::{Random, seed, setting};
use vmtree_guest::Mailbox;
use vmtree_guest::mailbox::{Counter, counter_of};

/// How many in all; those of the daemon among them.
const KILLS: u64 = 2000;
/// Of how many kills one is the daemon's.
const DAEMON: u64 = 20;
const VCPUS: u64 = 4;
/// How often the mount that lives on is made anew.
const MOUNTS: u64 = 4;
/// How long a vCPU may stay held after its controller was killed.
const LET_GO: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for it, looking often; how long that took.
fn soon(limit: Duration, what: &dyn Fn() -> String, mut done: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < limit, "not within {limit:?}: {}", what());
        sleep(Duration::from_micros(300));
    }
    begun.elapsed()
}

/// One vCPU of a mount, with one client at a time.
struct Lane<'a> {
    root: &'a Path,
    vcpu: u64,
    random: Random,
    mailbox: Mailbox<File>,
    /// The longest that a kill took to let the vCPU go, and whose.
    slowest: (Duration, String),
}

impl Lane<'_> {
    fn state(&self) -> String {
        fs::read_to_string(self.root.join(format!("vcpu/{}/state", self.vcpu))).unwrap()
    }

    fn heartbeat(&self) -> u64 {
        self.mailbox.word(counter_of(self.vcpu, Counter::Heartbeat)).unwrap()
    }

    /// Starts a client and kills it, once the moment has come; whether it still ran.
    fn kill_one(&mut self) -> bool {
        let mut client = Client::start(&mut self.random, self.root, self.vcpu);
        if self.random.once_in(2) {
            // As soon as the vCPU is held, or not long after.
            let late = Instant::now() + Duration::from_millis(15);
            while Instant::now() < late && !self.state().starts_with("held") {
                sleep(Duration::from_micros(300));
            }
            sleep(self.random.micros(1000));
        } else {
            sleep(self.random.micros(12_000));
        }
        let ran = client.kill(&mut self.random);
        let what = client.what.clone();
        soon(PATIENCE, &|| format!("the end of {what}"), || client.ended());
        let told = || format!("vCPU {} let go after the kill of {what}: {}", self.vcpu, self.state());
        let took = soon(LET_GO, &told, || self.state() == "running\n");
        if took > self.slowest.0 {
            self.slowest = (took, what.clone());
        }
        let before = self.heartbeat();
        let told = || format!("vCPU {} runs on after the kill of {what}: {}", self.vcpu, self.state());
        soon(PATIENCE, &told, || self.heartbeat() != before);
        ran
    }

    fn run(&mut self, kills: u64) -> u64 {
        let (mut killed, mut ended) = (0, 0);
        while killed < kills {
            if self.kill_one() {
                killed += 1;
            } else {
                ended += 1;
            }
        }
        ended
    }
}

/// Nothing of the clients is left once all are gone, but for the views and rules that they made: those are the mount's.
fn assert_quiet(root: &Path) {
    fs::write(root.join("views/0/access"), "reset").unwrap();
    for vcpu in 0..VCPUS {
        assert_eq!(fs::read_to_string(root.join(format!("vcpu/{vcpu}/state"))).unwrap(), "running\n");
    }
    fs::write(root.join("view"), "0").unwrap();
    for entry in fs::read_dir(root.join("views")).unwrap() {
        let view = entry.unwrap();
        if view.file_name() != "0" {
            fs::remove_dir(view.path()).unwrap();
        }
    }
    let stats = || fs::read_to_string(root.join("events/stats")).unwrap();
    soon(PATIENCE, &|| format!("nothing is armed:\n{}", stats()), || {
        stats().lines().all(|line| line.contains(" armed=0 "))
    });
}

#[test]
fn killed_readers_and_controllers_leave_no_vcpu_held() {
    let Some(lab) = lab("kills of clients") else { return };
    let seed = seed("kills of clients");
    let kills = setting("VMTREE_KILLS", KILLS);
    let each = (kills - kills / DAEMON).div_ceil(VCPUS * MOUNTS);
    for round in 0..MOUNTS {
        let begun = Instant::now();
        let source = format!("emu:ram=64M,vcpus={VCPUS}");
        // Longer than the test waits: what lets go is the kill.
        let mounted = lab.run(&["mount", &source, "-o", "reply_timeout=60"]);
        assert!(mounted.status.success(), "{mounted:?}");
        let pids = family(lab.daemons()[0]);
        let root = lab.mountpoint.as_path();
        fs::create_dir(root.join("views/a")).unwrap();
        let ends = scope(|scope| {
            let lanes: Vec<_> = (0..VCPUS)
                .map(|vcpu| {
                    scope.spawn(move || {
                        let mailbox = Mailbox::new(File::open(root.join("mem")).unwrap());
                        mailbox.wait_running(PATIENCE).unwrap();
                        let random = Random::new(seed, round * VCPUS + vcpu);
                        let mut lane = Lane { root, vcpu, random, mailbox, slowest: Default::default() };
                        (lane.run(each), lane.slowest)
                    })
                })
                .collect();
            lanes.into_iter().map(|lane| lane.join().unwrap()).collect::<Vec<_>>()
        });
        assert_quiet(root);
        let ended: u64 = ends.iter().map(|(ended, _)| ended).sum();
        // Few files end by themselves.
        assert!(ended <= each * VCPUS / 20, "{ended} clients ended by themselves");
        let slowest = ends.iter().map(|(_, slowest)| slowest).max().unwrap();
        println!(
            "{} kills in {:?}, {ended} clients ended before; let go within {slowest:?}",
            each * VCPUS,
            begun.elapsed()
        );
        lab.umount();
        lab.assert_clean(&pids);
    }
}

/// A mount in front, which may be killed before it answers.
fn begin(lab: &Lab) -> Child {
    let mut command = vmtree();
    let command = command.args(["mount", "-f", "emu:ram=16M,vcpus=2"]).arg(&lab.mountpoint);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_killed_daemon_leaves_no_mount_and_the_next_one_works() {
    let Some(lab) = lab("kills of the daemon") else { return };
    let seed = seed("kills of the daemon");
    let mut random = Random::new(seed, u64::MAX);
    let kills = setting("VMTREE_KILLS", KILLS) / DAEMON;
    let begun = Instant::now();
    let mut early = 0;
    for _ in 0..kills {
        let mut daemon = begin(&lab);
        let mut clients = Vec::new();
        if random.once_in(4) {
            early += 1;
            sleep(random.micros(80_000));
        } else {
            wait_until("the mount answers", || lab.answers());
            let _ = fs::create_dir(lab.mountpoint.join("views/a"));
            for client in 0..random.below(4) {
                clients.push(Client::start(&mut random, &lab.mountpoint, client % 2));
            }
            sleep(random.micros(15_000));
            if let Some(client) = clients.first_mut() {
                client.kill(&mut random);
            }
        }
        let pids = family(daemon.id());
        let signal = if random.once_in(5) { 15 } else { 9 };
        kill(daemon.id(), signal);
        daemon.wait().unwrap();
        for client in &mut clients {
            let what = client.what.clone();
            // A loop of a shell goes on without the files that it had.
            if what.contains("while :") {
                client.kill(&mut random);
            }
            soon(PATIENCE, &|| format!("the end of {what}"), || client.ended());
        }
        lab.assert_clean(&pids);
    }
    println!("{kills} kills of the daemon in {:?}, {early} of them before it answered", begun.elapsed());
    // The next one, in the background, as a user mounts.
    let pids = family(lab.mount());
    assert!(Command::new("ls").arg(&lab.mountpoint).stdout(Stdio::null()).status().unwrap().success());
    lab.umount();
    lab.assert_clean(&pids);
}
