//! Held events of a QEMU guest, and pages that are watched.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vmtree_api::events::{EventKind, Verdict, Wanted, Watch, Way};
use vmtree_api::{NoHost, Source, VcpuId};
use vmtree_guest::layout::{CODE, SCRATCH};
use vmtree_guest::mailbox::{Op, Site, header};
use vmtree_guest::{Mailbox, Outcome};

use crate::lab::Vm;
use crate::machine::Machine;
use crate::{share, told};

const EVENTS: u64 = 20_000;
const ROUNDS: usize = 5;
const LONG: Duration = Duration::from_secs(60);

/// The conformance guest on one vCPU, beside the plugin.
pub fn guest(plugin: &str) -> Vm {
    let folder = tempfile::tempdir().expect("a folder");
    let elf = folder.path().join("guest.elf");
    fs::write(&elf, vmtree_guest::elf()).expect("the guest");
    let args = ["-accel", "tcg", "-kernel", elf.to_str().expect("a path"), "-plugin", plugin];
    let mut vm = Vm::start(&[&args[..], crate::lab::SHARED].concat());
    // It has read the file once it answers.
    assert!(vm.human("info status").contains("running"));
    vm
}

/// Has vCPU 0 write CR3 so many times, on a thread of its own: straight through QEMU's memory.
fn switches(driver: &Arc<dyn vmtree_api::Driver>) -> thread::JoinHandle<()> {
    struct Ram(Arc<dyn vmtree_api::Driver>);
    impl vmtree_guest::Bytes for Ram {
        fn read(&self, gpa: u64, buf: &mut [u8]) -> std::io::Result<()> {
            let read = self.0.memory().read(vmtree_api::Gpa(gpa), buf);
            read.map(drop).map_err(std::io::Error::other)
        }

        fn write(&self, gpa: u64, data: &[u8]) -> std::io::Result<()> {
            self.0.memory().write(vmtree_api::Gpa(gpa), data).map(drop).map_err(std::io::Error::other)
        }
    }
    let mailbox = Mailbox::new(Ram(driver.clone()));
    mailbox.wait_running(LONG).expect("the guest");
    mailbox.background(false, LONG).expect("a quiet guest");
    let cr3 = mailbox.header(header::KERNEL_CR3).expect("the kernel's CR3");
    thread::spawn(move || {
        let outcome = mailbox.order(0, Op::WriteCr3, &[EVENTS, cr3], LONG);
        assert!(matches!(outcome, Ok(Outcome::Done(_))), "{outcome:?}");
    })
}

/// Microseconds from each answer to the next event, at the driver's boundary.
fn at_the_driver(vm: &Vm) -> Vec<f64> {
    let source = Source::new("qemu", &vm.qmp(), Vec::new());
    let driver: Arc<dyn vmtree_api::Driver> =
        vmtree_qemu::open(source, Arc::new(NoHost)).expect("the VM").into();
    let events = driver.events().expect("an agent");
    let guest = switches(&driver);
    let watch =
        Watch { kind: EventKind::Cr3, way: Some(Way::To), vcpu: Some(VcpuId(0)), index: None, hold: true };
    events.watch(&Wanted { watches: vec![watch], rules: Vec::new() }).expect("cr3");
    let mut times = Vec::with_capacity(EVENTS as usize);
    let mut answered = None::<Instant>;
    while !guest.is_finished() {
        let Some(held) = events.next(Duration::from_millis(20)).expect("events") else { continue };
        if let Some(answered) = answered {
            times.push(answered.elapsed().as_secs_f64() * 1e6);
        }
        answered = Some(Instant::now());
        held.answer(&Verdict::Continue).expect("an answer");
    }
    guest.join().expect("the guest");
    times
}

/// A held cr3: at the driver's boundary, at the file, and at the file of the built-in machine.
pub fn trips(plugin: &str) -> bool {
    println!("a held cr3 of a QEMU guest, answer to next event");
    let vm = guest(plugin);
    let emu = Machine::mount("emu:ram=64M,vcpus=1");
    let (mut driver, mut file, mut more) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        driver.push(share(&mut at_the_driver(&vm), 0.5));
        let machine = Machine::mount(&format!("qemu:{}", vm.qmp()));
        let at_file = share(&mut machine.held(EVENTS as usize), 0.5);
        drop(machine);
        more.push(at_file - share(&mut emu.held(EVENTS as usize), 0.5));
        file.push(at_file);
    }
    let kept = told("at the driver's boundary, median", share(&mut driver, 0.5), Some(40.0), "us");
    told("at the file, median", share(&mut file, 0.5), None, "us");
    kept & told("at the file, more than the built-in machine's", share(&mut more, 0.5), Some(25.0), "us")
}

/// What rules on pages cost a guest that spins: told, not promised.
pub fn pages(plugin: &str) {
    println!("\nthe conformance guest, with / without a rule");
    let vm = guest(plugin);
    let machine = Machine::mount(&format!("qemu:{}", vm.qmp()));
    let mem = std::fs::File::open(machine.path("mem")).expect("mem");
    let its_loop = Mailbox::new(mem).site(Site::Spin).expect("a site") & !0xfff;
    for (what, page, rights) in [
        ("fetches from a page that it does not execute", SCRATCH, "rw-"),
        ("fetches from the page that it executes", its_loop, "rw-"),
        ("writes to a page that it does not touch", CODE, "r-x"),
    ] {
        let rule = format!("{page:#x}-{:#x} {rights}", page + 0x1000);
        told(what, machine.slowdown("events/slat", Some(&rule)), None, "");
    }
}
