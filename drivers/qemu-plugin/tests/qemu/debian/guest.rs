//! A Debian guest with the plugin, and all that is told of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmtree_agent::client::Client;
use vmtree_agent::{Event, Kind, Socket};

use super::vm::{self, Vm};
use crate::lab::{at_least, library, soon, wanted, watch};

/// How long a boot may take on a busy host.
pub const BOOT: Duration = Duration::from_secs(180);

pub struct Guest {
    pub vm: Vm,
    pub client: Arc<Client>,
    told: Arc<Mutex<Vec<Event>>>,
    over: Arc<AtomicBool>,
    taker: Option<JoinHandle<()>>,
}

impl Guest {
    /// One that is watched from its first instruction on; `None`, and a line, where this host can't have it.
    pub fn start(kinds: &[Kind], line: &str, args: &[&str]) -> Option<Self> {
        // Interrupts are told since 10.2.
        let least = if kinds.contains(&Kind::Interrupt) { (10, 2) } else { (10, 0) };
        let debian = at_least(least).then(vm::debian)??;
        let (kernel, initrd) = (debian.join("vmlinuz"), debian.join("initrd.gz"));
        let line = format!("console=ttyS0 quiet panic=-1 {line} -- probe");
        let plugin = format!("{},socket=agent", library().display());
        let own = ["-accel", "tcg,thread=single", "-m", "512M", "-S", "-append", &line, "-plugin", &plugin];
        let files = ["-kernel", kernel.to_str().unwrap(), "-initrd", initrd.to_str().unwrap()];
        let mut vm = Vm::start_without_qmp(&[&own, &files[..], args].concat());
        let socket = Socket::connect(&vm.folder().join("agent")).unwrap();
        let client = Client::open(Arc::new(socket)).unwrap();
        let reader = client.clone();
        thread::spawn(move || reader.read_forever());
        client.watch(&wanted(kinds.iter().map(|kind| watch(*kind, false)))).unwrap();
        let (told, over) = (Arc::<Mutex<Vec<Event>>>::default(), Arc::<AtomicBool>::default());
        let (into, end, taking) = (told.clone(), over.clone(), client.clone());
        let taker = thread::spawn(move || {
            while !end.load(Ordering::SeqCst) {
                // At its end QEMU is killed.
                let Ok(next) = taking.next(Duration::from_millis(50)) else { break };
                into.lock().unwrap().extend(next);
            }
            taking.close();
        });
        vm.human("cont");
        Some(Self { vm, client, told, over, taker: Some(taker) })
    }

    /// Waits until the guest has said all; then as [`Guest::told`].
    pub fn told_all(&mut self) -> Vec<Event> {
        self.vm.await_serial("guest has told all", BOOT);
        self.vm.await_serial("probe has gpa", BOOT);
        self.told()
    }

    /// Stops it, and gives what was told of it until then.
    pub fn told(&mut self) -> Vec<Event> {
        self.vm.human("stop");
        let count = || self.told.lock().unwrap().len();
        let mut before = usize::MAX;
        soon("the last event has come", || {
            let settled = count() == std::mem::replace(&mut before, count());
            thread::sleep(Duration::from_millis(300));
            settled
        });
        self.told.lock().unwrap().clone()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = self.taker.take().map(JoinHandle::join);
    }
}
