//! The built-in machine under observation: its own rate of events, and the guest's slowdown.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use vmtree_guest::layout::SCRATCH;
use vmtree_guest::mailbox::{Op, header};
use vmtree_guest::{Mailbox, Outcome};

use crate::{share, told};

const LIMIT: Duration = Duration::from_secs(60);
const ROUNDS: usize = 7;
/// The guest's work: so many rounds of two instructions.
const SPIN: u64 = 1_500_000;

/// A mount of `source` at `vm` below the folder; it ends with it.
pub struct Mounted(tempfile::TempDir);

/// Mounts `source`.
pub fn mount(source: &str) -> Mounted {
    let dir = tempfile::tempdir().expect("a folder");
    let vm = dir.path().join("vm");
    fs::create_dir(&vm).expect("a mountpoint");
    let status = Command::new(env!("CARGO_BIN_EXE_vmtree")).args(["mount", source]).arg(&vm).status();
    assert!(status.is_ok_and(|status| status.success()), "vmtree mount");
    Mounted(dir)
}

impl Mounted {
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("vm").join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new(env!("CARGO_BIN_EXE_vmtree")).arg("umount").arg(self.path("")).status();
    }
}

/// A mounted VM, with its guest quiet.
pub struct Machine {
    mounted: Mounted,
    guest: Mailbox<File>,
}

impl Machine {
    pub fn mount(source: &str) -> Self {
        let mounted = mount(source);
        let mem = File::options().read(true).write(true).open(mounted.path("mem")).expect("mem");
        let guest = Mailbox::new(mem);
        guest.wait_running(LIMIT).expect("the guest");
        guest.background(false, LIMIT).expect("a quiet guest");
        Self { mounted, guest }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.mounted.path(name)
    }

    pub fn daemon(&self) -> u32 {
        let info = fs::read_to_string(self.path("info")).expect("info");
        let pid = info.lines().find_map(|line| line.strip_prefix("daemon_pid ")).expect("daemon_pid");
        pid.parse().expect("a pid")
    }

    /// Has vCPU 0 write CR3 so many times, from a thread of its own.
    pub fn switches(&self, count: u64) -> thread::JoinHandle<()> {
        let mem = self.guest.bytes().try_clone().expect("mem");
        thread::spawn(move || {
            let guest = Mailbox::new(mem);
            let cr3 = guest.header(header::KERNEL_CR3).expect("the kernel's CR3");
            let outcome = guest.order(0, Op::WriteCr3, &[count, cr3], LIMIT);
            assert!(matches!(outcome, Ok(Outcome::Done(_))), "{outcome:?}");
        })
    }

    /// Microseconds from each answer to a held CR3 write to the next such event; the guest makes one every few instructions.
    pub fn held(&self, events: usize) -> Vec<f64> {
        let path = self.path("events/cr3,dir=to");
        let mut file = File::options().read(true).write(true).open(path).expect("events/cr3");
        let switches = self.switches(events as u64);
        let (mut buf, mut times) = ([0; 4096], Vec::with_capacity(events));
        let mut got = file.read(&mut buf).expect("an event");
        for index in 0..events {
            let line = std::str::from_utf8(&buf[..got]).expect("text");
            let seq = line.strip_prefix("seq=").and_then(|rest| rest.split(' ').next()).expect("seq");
            let answer = format!("{seq} continue\n");
            let begun = Instant::now();
            file.write_all(answer.as_bytes()).expect("an answer");
            if index + 1 < events {
                got = file.read(&mut buf).expect("an event");
                times.push(begun.elapsed().as_secs_f64() * 1e6);
            }
        }
        drop(file);
        switches.join().expect("the guest");
        times
    }

    /// How long the guest takes for its work, in seconds.
    fn work(&self) -> f64 {
        let begun = Instant::now();
        self.guest.order(0, Op::Spin, &[SPIN], LIMIT).expect("the work");
        begun.elapsed().as_secs_f64()
    }

    /// The median of the guest's time with `armed` open, over that without; both in turn.
    pub fn slowdown(&self, armed: &str, rule: Option<&str>) -> f64 {
        let mut ratios: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let without = self.work();
                let file = File::open(self.path(armed)).expect("an event file");
                if let Some(rule) = rule {
                    fs::write(self.path("views/0/access"), rule).expect("a rule");
                }
                let with = self.work();
                if rule.is_some() {
                    fs::write(self.path("views/0/access"), "reset").expect("no rule");
                }
                drop(file);
                with / without
            })
            .collect();
        share(&mut ratios, 0.5)
    }
}

pub fn run() -> bool {
    println!("\nthe built-in machine: a loop of the guest, with / without");
    let machine = Machine::mount("emu:ram=70G,vcpus=1");
    let page = format!("{:#x}-{:#x} r-x", SCRATCH, SCRATCH + 0x1000);
    let mut kept = told("cr3 observed", machine.slowdown("events/cr3", None), Some(1.03), "");
    kept &= told("a rule on an untouched page", machine.slowdown("events/slat", Some(&page)), Some(1.05), "");
    let wide = "0x100000000-0x1100000000 r-x";
    kept &= told("a rule over 64 GiB", machine.slowdown("events/slat", Some(wide)), Some(1.05), "");
    rate(&machine);
    kept
}

/// The machine's own rate of events, observed as text and as binary records: told, not promised.
fn rate(machine: &Machine) {
    for format in ["text", "binary"] {
        const EVENTS: u64 = 300_000;
        let mut file =
            File::open(machine.path(&format!("events/cr3,dir=to,format={format}"))).expect("events/cr3");
        let begun = Instant::now();
        let switches = machine.switches(EVENTS);
        let (mut buf, mut records, mut width) = (vec![0; 1 << 20], 0, 0);
        while records < EVENTS {
            let got = file.read(&mut buf).expect("records");
            records += match format {
                "text" => buf[..got].iter().filter(|byte| **byte == b'\n').count() as u64,
                _ => (got / vmtree::text::record::RECORD_BYTES) as u64,
            };
            width += got;
        }
        let seconds = begun.elapsed().as_secs_f64();
        switches.join().expect("the guest");
        let what = format!("cr3 events of the guest, {format}, {} bytes each", width as u64 / EVENTS);
        told(&what, EVENTS as f64 / seconds / 1e3, None, "k/s");
    }
}
