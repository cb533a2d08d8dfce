//! Beside a manager that does as it likes: the VM ends as the manager left it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../../../tests/labs/qemu/lab.rs"]
mod lab;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lab::Vm;
use vmtree_api::{Driver, Execution, Gpa, NoHost, Pause, RunState, Source};

/// The second client, at a socket of its own.
struct Manager(BufReader<UnixStream>);

impl Manager {
    fn connect(folder: &Path) -> Self {
        let stream = UnixStream::connect(folder.join("manager")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut manager = Self(BufReader::new(stream));
        assert!(manager.line().contains("QMP"));
        manager.ask("qmp_capabilities");
        manager
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "QEMU hung up on its manager");
        line
    }

    fn ask(&mut self, command: &str) -> String {
        self.0.get_mut().write_all(format!("{{\"execute\": \"{command}\"}}\n").as_bytes()).unwrap();
        loop {
            let line = self.line();
            if !line.contains("\"event\"") {
                assert!(line.contains("\"return\""), "{command}: {line}");
                return line;
            }
        }
    }

    fn running(&mut self) -> bool {
        self.ask("query-status").contains("\"running\": true")
    }
}

/// Random numbers that are the same each time (xorshift64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// A VM, its manager, and our driver, whose memory some threads read all the time.
struct Scene {
    vm: Vm,
    manager: Manager,
    driver: Arc<dyn Driver>,
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
    readers: Vec<thread::JoinHandle<()>>,
}

impl Scene {
    fn start() -> Self {
        let vm = Vm::start(&[
            "-accel",
            "tcg",
            "-m",
            "64M",
            "-action",
            "reboot=reset",
            "-qmp",
            "unix:manager,server=on,wait=off",
        ]);
        let manager = Manager::connect(vm.folder());
        let source = Source::new("qemu", &vm.qmp(), Vec::new());
        let driver: Arc<dyn Driver> = Arc::from(vmtree_qemu::open(source, Arc::new(NoHost)).unwrap());
        let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let reader = |_| {
            let (driver, stop, reads) = (Arc::clone(&driver), Arc::clone(&stop), Arc::clone(&reads));
            thread::spawn(move || {
                let mut buf = [0; 4096];
                while !stop.load(Ordering::Relaxed) {
                    if driver.memory().read(Gpa(16 << 20), &mut buf).is_ok() {
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                    thread::sleep(Duration::from_micros(200));
                }
            })
        };
        let readers = (0..2).map(reader).collect();
        Self { vm, manager, driver, stop, reads, readers }
    }

    fn execution(&self) -> &dyn Execution {
        self.driver.execution().unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for reader in self.readers.drain(..) {
            let ended = reader.join();
            assert!(ended.is_ok() || thread::panicking());
        }
    }
}

/// What must be so if each act is done when the one before it is over.
#[derive(Clone, Copy, Debug)]
struct Model {
    /// Whether the guest runs.
    runs: bool,
    /// Whether the manager left it running. A stop of what stands still already is no act: QEMU tells nobody of it.
    left_running: bool,
}

#[test]
fn after_a_thousand_rounds_of_random_acts_the_vm_is_always_as_its_manager_left_it() {
    if !lab::have_qemu() {
        return;
    }
    let mut dice = Dice(0x5eed_0001);
    let mut scene = Scene::start();
    let mut model = Model { runs: true, left_running: true };
    let (mut ends, mut reads) = (0, 0);
    for round in 0..1000 {
        let mut pauses: Vec<Pause> = Vec::new();
        // Those that a manager has ended by its cont.
        let mut void: Vec<Pause> = Vec::new();
        let mut story = Vec::new();
        for _ in 0..=dice.roll(5) {
            let act = dice.roll(10);
            story.push(act);
            match act {
                0..=2 => {
                    pauses.push(scene.execution().pause().unwrap());
                    model.runs = false;
                }
                3 if !pauses.is_empty() => {
                    let index = dice.roll(pauses.len() as u64) as usize;
                    pauses.swap_remove(index).resume().unwrap();
                    if pauses.is_empty() {
                        model.runs = model.left_running;
                    }
                }
                3 | 4 => {
                    scene.manager.ask("stop");
                    model.left_running &= !model.runs;
                    model.runs = false;
                }
                5 | 6 => {
                    scene.manager.ask("cont");
                    (model.runs, model.left_running) = (true, true);
                    void.append(&mut pauses);
                }
                7 => drop(scene.manager.ask("system_reset")),
                8 => {
                    let state = scene.execution().state().unwrap();
                    assert_eq!(state == RunState::Running, model.runs, "round {round}: {story:?}");
                }
                _ if dice.roll(20) == 0 => {
                    scene.vm.kill();
                    scene.vm.reap();
                    pauses.drain(..).chain(void.drain(..)).for_each(|pause| drop(pause.resume()));
                    reads += scene.reads.load(Ordering::Relaxed);
                    scene = Scene::start();
                    model = Model { runs: true, left_running: true };
                    ends += 1;
                }
                _ => drop(void.pop()),
            }
        }
        drop((void, pauses));
        model.runs = model.left_running;
        assert_eq!(scene.manager.running(), model.left_running, "round {round}: {story:?} {model:?}");
        let state = scene.execution().state().unwrap();
        assert_eq!(state == RunState::Running, model.left_running, "round {round}: {story:?}");
    }
    reads += scene.reads.load(Ordering::Relaxed);
    assert!(ends > 3 && reads > 100, "{ends} ends, {reads} reads");
}

/// Pauses and looks at random until told to stop.
fn pause_at_random(driver: &dyn Driver, stop: &AtomicBool, seed: u64) -> u64 {
    let mut dice = Dice(seed);
    let mut done = 0;
    let execution = driver.execution().unwrap();
    while !stop.load(Ordering::Relaxed) {
        // Refused only where the manager resumed it at this very moment.
        let Ok(pause) = execution.pause() else { continue };
        if dice.roll(2) == 0 {
            thread::sleep(Duration::from_micros(dice.roll(2000)));
        }
        if dice.roll(4) == 0 {
            execution.state().unwrap();
        }
        pause.resume().unwrap();
        done += 1;
    }
    done
}

/// `acts` of a manager at full speed against two threads of ours.
fn at_once(scene: &mut Scene, acts: &[&str], seed: u64) {
    let done = AtomicBool::new(false);
    let driver = Arc::clone(&scene.driver);
    let pauses: u64 = thread::scope(|scope| {
        let ours = [1, 2].map(|add| {
            let (driver, done) = (&*driver, &done);
            scope.spawn(move || pause_at_random(driver, done, seed + add))
        });
        let mut dice = Dice(seed);
        for _ in 0..500 {
            scene.manager.ask(acts[dice.roll(acts.len() as u64) as usize]);
            thread::sleep(Duration::from_micros(dice.roll(1500)));
        }
        done.store(true, Ordering::Relaxed);
        ours.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(pauses > 20, "{pauses}");
}

#[test]
fn a_manager_that_only_resumes_and_resets_leaves_a_running_vm_whatever_we_do_meanwhile() {
    if !lab::have_qemu() {
        return;
    }
    let mut scene = Scene::start();
    for seed in 1..=3 {
        at_once(&mut scene, &["cont", "system_reset", "query-status"], seed << 20);
        assert!(scene.manager.running(), "seed {seed}");
    }
}

#[test]
fn whatever_was_done_at_once_the_managers_last_cont_stands() {
    if !lab::have_qemu() {
        return;
    }
    let mut scene = Scene::start();
    for seed in 1..=3 {
        at_once(&mut scene, &["stop", "cont", "system_reset"], seed << 21);
        scene.manager.ask("cont");
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            assert!(scene.manager.running(), "seed {seed}");
            assert_eq!(scene.execution().state().unwrap(), RunState::Running);
        }
        scene.manager.ask("stop");
        drop(scene.execution().pause().unwrap());
        assert!(!scene.manager.running(), "seed {seed}");
        scene.manager.ask("cont");
    }
}
