//! A Debian guest with the plugin, and all that is told of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmtree_agent::Event;
use vmtree_agent::client::Client;

use super::vm::{self, Vm};
use crate::lab::{Socket, at_least, library, soon, wanted, watch};

/// How long a boot may take on a busy host.
const BOOT: Duration = Duration::from_secs(180);

pub struct Guest {
    pub vm: Vm,
    told: Arc<Mutex<Vec<Event>>>,
    over: Arc<AtomicBool>,
    taker: Option<JoinHandle<()>>,
}

impl Guest {
    /// One that is watched from its first instruction on; `None`, and a line, where this host can't have it.
    pub fn start(kinds: &[vmtree_agent::Kind], line: &str, args: &[&str]) -> Option<Self> {
        let debian = at_least((10, 2)).then(vm::debian)??;
        let (kernel, initrd) = (debian.join("vmlinuz"), debian.join("initrd.gz"));
        let line = format!("console=ttyS0 quiet panic=-1 {line} -- probe");
        let plugin = format!("{},socket=agent", library().display());
        let own = ["-accel", "tcg,thread=single", "-m", "512M", "-S", "-append", &line, "-plugin", &plugin];
        let files = ["-kernel", kernel.to_str().unwrap(), "-initrd", initrd.to_str().unwrap()];
        let mut vm = Vm::start_without_qmp(&[&own, &files[..], args].concat());
        let socket = Socket::open(&vm.folder().join("agent")).unwrap();
        let (client, rest) = Client::open(Arc::new(socket)).unwrap();
        let reader = client.clone();
        thread::spawn(move || reader.read_forever(rest));
        client.watch(&wanted(kinds.iter().map(|kind| watch(*kind, false)))).unwrap();
        let (told, over) = (Arc::<Mutex<Vec<Event>>>::default(), Arc::<AtomicBool>::default());
        let (into, end) = (told.clone(), over.clone());
        let taker = thread::spawn(move || {
            while !end.load(Ordering::SeqCst) {
                // At its end QEMU is killed.
                let Ok(next) = client.next(Duration::from_millis(50)) else { break };
                into.lock().unwrap().extend(next);
            }
            client.close();
        });
        vm.human("cont");
        Some(Self { vm, told, over, taker: Some(taker) })
    }

    /// Waits until the guest has said all, stops it, and gives what was told of it until then.
    pub fn told_all(&mut self) -> Vec<Event> {
        self.vm.await_serial("guest has told all", BOOT);
        self.vm.await_serial("probe has gpa", BOOT);
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

    /// The number in base 16 that the guest said after `what`, or before it on its line.
    pub fn said(&self, what: &str) -> u64 {
        let serial = self.vm.serial();
        let line =
            serial.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{what}: {serial}"));
        let number =
            line.rsplit_once("0x").map_or_else(|| line.split(' ').next().unwrap(), |(_, number)| number);
        u64::from_str_radix(number.trim(), 16).unwrap()
    }

    /// What the page tables from `cr3` on make of an address; all its pages have 4 KiB.
    pub fn walk(&mut self, cr3: u64, gva: u64) -> u64 {
        const FRAME: u64 = 0xf_ffff_ffff_f000;
        let table = [39, 30, 21, 12].into_iter().fold(cr3, |table, shift| {
            let entry = self.vm.xp((table & FRAME) + (gva >> shift & 0x1ff) * 8);
            assert_eq!(entry & 1, 1, "{gva:#x} is not mapped by {cr3:#x}");
            entry
        });
        (table & FRAME) + (gva & 0xfff)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = self.taker.take().map(JoinHandle::join);
    }
}
