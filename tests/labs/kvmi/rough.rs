//! Hosts that lie, fall silent or die, and daemons that die, at any message: nothing hangs, nothing is left, the guest goes on.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{self, Lab, kill, wait_until};
use crate::lab::{Between, Endpoint};

/// What happens to a message of the host.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    Garbage,
    /// Its end never comes.
    Short,
    /// It says that it is shorter than it should be, and is.
    Shorter,
    Oversized,
    WrongNumber,
    WrongKind,
    Twice,
    Swallowed,
    Cut,
    /// The host dies at it.
    HostDies,
    /// The daemon dies at it.
    DaemonDies,
}

pub const WAYS: [Way; 11] = [
    Way::Garbage,
    Way::Short,
    Way::Shorter,
    Way::Oversized,
    Way::WrongNumber,
    Way::WrongKind,
    Way::Twice,
    Way::Swallowed,
    Way::Cut,
    Way::HostDies,
    Way::DaemonDies,
];

/// Numbers that look random (xorshift).
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn spoilt(way: Way, mut bytes: Vec<u8>, seed: u64) -> Option<Vec<u8>> {
    let mut dice = Dice(seed | 1);
    match way {
        Way::Garbage => bytes.iter_mut().for_each(|byte| *byte = dice.below(256) as u8),
        Way::Short => bytes.truncate(bytes.len() - 1 - dice.below(bytes.len() as u64 - 1) as usize),
        Way::Shorter => {
            let rest = u16::from_ne_bytes([bytes[2], bytes[3]]);
            let size = dice.below(u64::from(rest).max(1)) as u16;
            bytes[2..4].copy_from_slice(&size.to_ne_bytes());
            bytes.truncate(8 + usize::from(size));
        }
        Way::Oversized => {
            bytes[2..4].copy_from_slice(&u16::MAX.to_ne_bytes());
            bytes.resize(8 + usize::from(u16::MAX), 0);
        }
        Way::WrongNumber => bytes[4] ^= 0x55,
        Way::WrongKind => bytes[0] = bytes[0].wrapping_add(1 + dice.below(60) as u8),
        Way::Twice => bytes.extend(bytes.clone()),
        Way::Swallowed => bytes.clear(),
        Way::Cut => return None,
        Way::HostDies | Way::DaemonDies => {}
    }
    Some(bytes)
}

/// Whether nothing can be done over the connection afterwards. Other bytes in data, more behind them or an event that never comes are
/// no harm, as far as anybody can tell; of half an event libkvmi itself sees no more than of none.
fn breaks(way: Way) -> bool {
    use Way::{Cut, DaemonDies, HostDies, WrongKind, WrongNumber};
    matches!(way, WrongNumber | WrongKind | Cut | HostDies | DaemonDies)
}

/// The daemon ends by itself; libkvmi itself gives a silent host 15 seconds.
fn ends(lab: &Lab) {
    let deadline = Instant::now() + Duration::from_secs(40);
    while !lab.daemons().is_empty() {
        assert!(Instant::now() < deadline, "the daemon does not end by itself");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Runs something that may not take longer than a minute.
fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, ended) = mpsc::channel();
    thread::spawn(move || done.send(work()));
    ended.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|_| panic!("hangs: {what}"))
}

/// What users do; any of it may fail, none of it may hang.
fn work(mountpoint: &Path) {
    let at = |name: &str| mountpoint.join(name);
    let write = |name: &str, text: &str| {
        let _ = OpenOptions::new()
            .write(true)
            .open(at(name))
            .and_then(|mut file| file.write_all(text.as_bytes()));
    };
    let _ = fs::read(at("vcpu/0/regs/all"));
    write("ctl", "pause\n");
    write("vcpu/1/ctl", "step 3\n");
    let _ =
        fs::read(at("vcpu/1/regs/rip")).map(|rip| write("vcpu/1/regs/rip", &String::from_utf8_lossy(&rip)));
    write("ctl", "resume\n");
    // 4: O_NONBLOCK is 0o4000 on x86-64.
    let pipe = OpenOptions::new().read(true).write(true).custom_flags(0o4000).open(at("events/cr3"));
    if let Ok(mut pipe) = pipe {
        let end = Instant::now() + Duration::from_millis(300);
        let mut buf = vec![0; 65536];
        while Instant::now() < end {
            match pipe.read(&mut buf) {
                Ok(0) => break,
                Ok(bytes) => answer(&mut pipe, &String::from_utf8_lossy(&buf[..bytes])),
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }
    write("views/0/access", "0x400000-0x500000 r-x\n");
    write("views/0/access", "reset\n");
    let _ = fs::create_dir(at("views/x")).and_then(|()| fs::remove_dir(at("views/x")));
    let mut page = [0; 4096];
    let _ = File::open(at("mem")).and_then(|mut mem| mem.read_exact(&mut page));
}

fn answer(pipe: &mut File, records: &str) {
    for record in records.lines() {
        let seq = record.split(' ').find_map(|field| field.strip_prefix("seq="));
        let _ = seq.map(|seq| pipe.write_all(format!("{seq} continue\n").as_bytes()));
    }
}

/// Mounts, and returns whether that worked. A failure is told in words, on one line.
fn mount(lab: &Lab, socket: &Path) -> bool {
    let (mountpoint, source) = (lab.mountpoint.clone(), format!("kvmi:{},wait=10", socket.display()));
    let mut command = common::vmtree();
    command.args(["mount", &source]).arg(&mountpoint).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = in_time("mount", move || command.output().unwrap());
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains("kvmi") && !told.contains("panicked"), "{told}");
        println!("  the mount says: {}", told.trim());
    }
    output.status.success()
}

/// The heartbeat of the guest moves, and it can be paused: nobody holds it.
fn goes_on(lab: &Lab, socket: &Path) {
    assert!(mount(lab, socket), "the VM can't be mounted again");
    let mountpoint = lab.mountpoint.clone();
    in_time("the guest goes on", move || {
        let vm = vmtree_conformance::Vm::open(&mountpoint).and_then(vmtree_conformance::Vm::booted).unwrap();
        let only = ["memory-fresh", "pause-stops-all", "pause-twice"].map(str::to_owned);
        let mut told = Vec::new();
        let summary = vmtree_conformance::run(&vm, &only, &mut |line| told.push(line.to_owned()));
        assert!(summary.failed == 0 && summary.passed > 0, "{told:?}");
    });
    lab.umount();
    wait_until("unmounted", || lab.daemons().is_empty() && lab.mounted().is_empty());
}

/// One run: at the `number`th message, counted from the mount on if `after`, one thing happens.
pub fn run(test: &str, way: Way, number: u64, after: bool, seed: u64) {
    println!("{way:?} at message {number}{}", if after { " after the mount" } else { "" });
    let Some(lab) = common::lab(test) else { return };
    let (near, far) = (lab.folder.path().join("near"), lab.folder.path().join("far"));
    let target = Arc::new(AtomicUsize::new(if after { usize::MAX } else { number as usize }));
    let victim: Arc<Mutex<Vec<u32>>> = Arc::default();
    let (due, dies) = (Arc::clone(&target), Arc::clone(&victim));
    let meddle = move |at: usize, bytes: Vec<u8>| {
        if at != due.load(Ordering::Acquire) {
            return Some(bytes);
        }
        dies.lock().unwrap().drain(..).for_each(|pid| kill(pid, 9));
        spoilt(way, bytes, seed)
    };
    let between = Between::start(&near, &far, meddle);
    let mut endpoint = Endpoint::start(&near, "vcpus=2,ram=8M");
    if matches!(way, Way::HostDies) {
        victim.lock().unwrap().push(endpoint.pid());
    }
    let mounted = mount(&lab, &far);
    if mounted && after {
        if matches!(way, Way::DaemonDies) {
            victim.lock().unwrap().extend(lab.daemons());
        }
        target.store(between.passed.load(Ordering::Acquire) + number as usize, Ordering::Release);
    }
    if mounted {
        let mountpoint = lab.mountpoint.clone();
        in_time("work in the mount", move || work(&mountpoint));
        let reached = between.passed.load(Ordering::Acquire) > target.load(Ordering::Acquire);
        println!("  reached: {reached}, mounted: {}", !lab.mounted().is_empty());
        if reached && breaks(way) {
            ends(&lab);
        } else if !lab.mounted().is_empty() {
            let _ = lab.run(&["umount"]);
        }
    }
    wait_until("the daemon is gone", || lab.daemons().is_empty());
    wait_until("nothing is mounted", || lab.mounted().is_empty());
    victim.lock().unwrap().clear();
    target.store(usize::MAX, Ordering::Release);
    if matches!(way, Way::HostDies) {
        drop(endpoint);
        endpoint = Endpoint::start(&near, "vcpus=2,ram=8M");
    }
    goes_on(&lab, &far);
    assert!(endpoint.runs());
}
