//! What changes under a mount: memory that comes and goes, a VM that moves away, connections that are let go.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../../../tests/labs/qemu/lab.rs"]
mod lab;

use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::Vm;
use vmtree_api::{Driver, ErrorKind, Gpa, Host, RunState, Source};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// Remembers why the VM ended.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Host for Told {
    fn ended(&self, why: &str) {
        self.0.lock().unwrap().push(why.to_owned());
    }
}

fn open(vm: &Vm) -> (Box<dyn Driver>, Arc<Told>) {
    let told = Arc::<Told>::default();
    let driver = vmtree_qemu::open(Source::new("qemu", &vm.qmp(), Vec::new()), told.clone()).unwrap();
    (driver, told)
}

fn await_until(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(30), "not in time: {what}");
        sleep(Duration::from_millis(20));
    }
    begun.elapsed()
}

#[test]
fn a_vm_that_has_migrated_away_ends_the_driver() {
    if !lab::have_qemu() {
        return;
    }
    for paused in [false, true] {
        let args = ["-accel", "tcg", "-m", "64M"];
        let mut target = Vm::start(&[&args[..], &["-incoming", "defer"]].concat());
        let socket = target.folder().join("migration");
        let answer = target.human(&format!("migrate_incoming unix:{}", socket.display()));
        assert_eq!(answer.trim(), "");
        let mut vm = Vm::start(&args);
        let (driver, told) = open(&vm);
        let pause = paused.then(|| driver.execution().unwrap().pause().unwrap());
        driver.memory().write(Gpa(16 * MIB), b"moves!!!").unwrap();
        vm.human(&format!("migrate -d unix:{}", socket.display()));
        await_until("the end is told", || !told.0.lock().unwrap().is_empty());
        assert_eq!(told.0.lock().unwrap()[0], "the VM has migrated away");
        assert!(vm.human("info status").contains("postmigrate"));
        assert_eq!(driver.memory().read(Gpa(0), &mut [0; 8]).unwrap_err().kind(), ErrorKind::Gone);
        assert_eq!(driver.execution().unwrap().state().unwrap_err().kind(), ErrorKind::Gone);
        drop(pause);
        drop(driver);
        // Two of them must never run.
        assert!(vm.human("info status").contains("postmigrate"));
        assert_eq!(target.xp(16 * MIB), u64::from_le_bytes(*b"moves!!!"));
        let expected = if paused { "paused" } else { "running" };
        assert!(target.human("info status").contains(expected), "{}", target.human("info status"));
        let (moved, _) = open(&target);
        assert_eq!(moved.execution().unwrap().state().unwrap() == RunState::Paused, paused);
    }
}

#[test]
fn a_vm_that_waits_for_its_migration_is_not_paused_by_us() {
    if !lab::have_qemu() {
        return;
    }
    let vm = Vm::start(&["-accel", "tcg", "-m", "64M", "-incoming", "defer"]);
    let (driver, _) = open(&vm);
    let execution = driver.execution().unwrap();
    assert_eq!(execution.state().unwrap(), RunState::Paused);
    assert_eq!(execution.pause().unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(execution.force_resume().unwrap_err().kind(), ErrorKind::Busy);
}

#[test]
fn memory_that_is_plugged_in_appears_and_its_block_with_it() {
    if !lab::have_qemu() {
        return;
    }
    let mut vm = Vm::start(&["-accel", "tcg", "-machine", "q35", "-m", "256M,slots=2,maxmem=4G"]);
    let (driver, _) = open(&vm);
    let memory = driver.memory();
    let (before, end) = (memory.map().generation(), memory.map().ram_end());
    vm.human("object_add memory-backend-memfd,id=stick,size=128M,share=on");
    assert_eq!(vm.human("device_add pc-dimm,id=dimm,memdev=stick").trim(), "");
    let took = await_until("the DIMM appears", || memory.map().ram_end() > end);
    println!("after {took:?}");
    assert!(took < Duration::from_secs(7) && memory.map().generation() > before);
    assert_eq!(memory.map().ram_end(), 4 * GIB + 128 * MIB);
    assert_eq!(memory.blocks().iter().map(|block| &*block.name).collect::<Vec<_>>(), ["stick"]);
    memory.write(Gpa(4 * GIB), b"plugged!").unwrap();
    assert_eq!(vm.xp(4 * GIB), u64::from_le_bytes(*b"plugged!"));
}

#[test]
fn a_connection_is_let_go_when_nobody_uses_it_and_kept_while_we_pause() {
    if !lab::have_qemu() {
        return;
    }
    let vm = Vm::start(&["-accel", "tcg", "-m", "64M"]);
    let (driver, _) = open(&vm);
    // One that waits in the queue is greeted when its turn comes.
    let waiting = || {
        let other = std::os::unix::net::UnixStream::connect(vm.qmp()).unwrap();
        other.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        other
    };
    let greeted = |mut other: std::os::unix::net::UnixStream| {
        use std::io::Read;
        matches!(other.read(&mut [0; 8]), Ok(8))
    };
    assert!(greeted(waiting()), "the connection of the opening is kept");
    let pause = driver.execution().unwrap().pause().unwrap();
    let other = waiting();
    other.set_nonblocking(true).unwrap();
    sleep(Duration::from_secs(2));
    assert!(!greeted(other.try_clone().unwrap()), "let go while we pause");
    other.set_nonblocking(false).unwrap();
    pause.resume().unwrap();
    assert!(greeted(other), "kept after the pause");
}
