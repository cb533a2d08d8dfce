//! What a register snapshot of a live QEMU guest costs: against a bare gdbstub packet, and to the guest itself.
//!
//! `cargo bench --bench registers`; needs root, /dev/fuse and qemu-system-x86_64.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod gdb;
#[path = "../labs/qemu/lab.rs"]
mod lab;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lab::Vm;
use vmtree_guest::mailbox::Op;
use vmtree_guest::{Mailbox, Outcome};

const ROUNDS: usize = 7;
/// The guest's work: a loop of so many rounds of two instructions.
const SPIN: u64 = 100_000_000;
const LIMIT: Duration = Duration::from_secs(60);

struct Mounted {
    vm: Vm,
    dir: tempfile::TempDir,
}

impl Mounted {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let elf = dir.path().join("guest.elf");
        fs::write(&elf, vmtree_guest::elf()).expect("the guest");
        fs::create_dir(dir.path().join("vm")).expect("a mountpoint");
        let args = ["-accel", "tcg", "-m", "64M", "-kernel", elf.to_str().expect("a path")];
        let memory =
            ["-object", "memory-backend-memfd,id=m,size=64M,share=on", "-machine", "pc,memory-backend=m"];
        let vm = Vm::start(&[&args[..], &memory[..]].concat());
        let mounted = Self { vm, dir };
        let source = format!("qemu:{}", mounted.vm.qmp());
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmtree"));
        let status = command.args(["mount", &source]).arg(mounted.path("")).status();
        assert!(status.is_ok_and(|status| status.success()), "vmtree mount");
        mounted
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("vm").join(name)
    }

    fn mailbox(&self) -> Mailbox<File> {
        let mem = File::options().read(true).write(true).open(self.path("mem")).expect("mem");
        let mailbox = Mailbox::new(mem);
        mailbox.wait_running(LIMIT).expect("the guest");
        mailbox
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new(env!("CARGO_BIN_EXE_vmtree")).arg("umount").arg(self.path("")).status();
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median time of one read of a file, in microseconds.
fn latency(path: &Path) -> f64 {
    let file = File::open(path).expect("a file");
    let mut buf = vec![0; 8192];
    let one = |_| {
        let begun = Instant::now();
        assert!(file.read_at(&mut buf, 0).expect("a read") > 0);
        begun.elapsed().as_secs_f64() * 1e6
    };
    median((0..200).map(one).collect())
}

/// How long the guest takes for its work.
fn work(mailbox: &Mailbox<File>) -> f64 {
    let begun = Instant::now();
    let outcome = mailbox.order(0, Op::Spin, &[SPIN], LIMIT).expect("an order");
    assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
    begun.elapsed().as_secs_f64()
}

/// The same while `path` is read 100 times a second.
fn work_observed(mailbox: &Mailbox<File>, path: &Path) -> f64 {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::open(path).expect("a file");
            let mut buf = vec![0; 8192];
            let mut next = Instant::now();
            while !over.load(Ordering::Relaxed) {
                assert!(file.read_at(&mut buf, 0).expect("a read") > 0);
                next += Duration::from_millis(10);
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
        let took = work(mailbox);
        over.store(true, Ordering::Relaxed);
        took
    })
}

fn main() {
    if !lab::have_qemu() {
        return;
    }
    let mounted = Mounted::new();
    let all = mounted.path("vcpu/0/regs/all");
    assert!(all.exists(), "this driver shows no registers");
    let stub_dir = tempfile::tempdir().expect("a folder");
    let stub = stub_dir.path().join("gdb");
    let baseline = Vm::start(&["-S", "-gdb", &format!("unix:path={},server=on,wait=off", stub.display())]);
    let mut gdb = gdb::Gdb::connect(&stub);
    let mailbox = mounted.mailbox();
    let mut rounds: Vec<[f64; 5]> = Vec::new();
    for _ in 0..ROUNDS {
        let packet = median((0..200).map(|_| gdb.registers()).collect());
        let running = latency(&all);
        fs::write(mounted.path("ctl"), "pause").expect("pause");
        let paused = latency(&all);
        fs::write(mounted.path("ctl"), "resume").expect("resume");
        rounds.push([packet, running, paused, work(&mailbox), work_observed(&mailbox, &all)]);
    }
    let of = |index: usize| median(rounds.iter().map(|round| round[index]).collect());
    let ratio = |a: usize, b: usize| median(rounds.iter().map(|round| round[a] / round[b]).collect());
    println!("medians of {ROUNDS} rounds, QEMU TCG, 1 vCPU");
    println!("one g packet of a bare gdbstub, VM stopped           {:>8.1} us", of(0));
    println!(
        "regs/all, VM running (stop, read, continue)          {:>8.1} us   {:>5.1} x",
        of(1),
        ratio(1, 0)
    );
    println!(
        "regs/all, VM paused                                  {:>8.1} us   {:>5.1} x",
        of(2),
        ratio(2, 0)
    );
    println!("the guest's work, undisturbed                        {:>8.3} s", of(3));
    println!(
        "the same, regs/all read 100 times a second           {:>8.3} s    {:>5.2} x",
        of(4),
        ratio(4, 3)
    );
    drop(baseline);
}
