//! A QEMU with the guest, its driver, and what is known of both.

use std::fs::File;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::Vm;
use vmtree_api::x86::{Reg, Registers as Regs, Segment};
use vmtree_api::{Cancel, Driver, NoHost, RegValue, RegisterSet, RunState, Source, VcpuId};
use vmtree_guest::Mailbox;
use vmtree_guest::mailbox::Counter;

use crate::lab;

pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Lab {
    pub vm: Vm,
    pub mailbox: Mailbox<File>,
    pub driver: Box<dyn Driver>,
}

/// The guest on `vcpus` vCPUs of TCG, with what `extra` adds.
pub fn boot(vcpus: u32, extra: &[&str]) -> Option<Lab> {
    if !lab::have_qemu() {
        return None;
    }
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), vmtree_guest::elf()).unwrap();
    let (smp, kernel) = (vcpus.to_string(), image.path().to_str().unwrap());
    let args = [
        "-accel",
        "tcg",
        "-m",
        "64M",
        "-machine",
        "pc,memory-backend=m",
        "-nic",
        "none", //
        "-object",
        "memory-backend-file,id=m,size=64M,share=on,mem-path=ram", //
        "-smp",
        &smp,
        "-kernel",
        kernel,
    ];
    let vm = Vm::start(&[&args, extra].concat());
    let ram = File::options().read(true).write(true).open(vm.folder().join("ram")).unwrap();
    let mailbox = Mailbox::new(ram);
    mailbox.wait_running(PATIENCE).unwrap();
    let driver = open(&vm);
    Some(Lab { vm, mailbox, driver })
}

pub fn open(vm: &Vm) -> Box<dyn Driver> {
    vmtree_qemu::open(Source::new("qemu", &vm.qmp(), Vec::new()), Arc::new(NoHost)).unwrap()
}

impl Lab {
    pub fn read(&self, vcpu: u32) -> Regs {
        read(&*self.driver, vcpu)
    }

    pub fn write(&self, vcpu: u32, changes: &[(Reg, u64)]) -> vmtree_api::Result<()> {
        let changes: Vec<_> = changes.iter().map(|(reg, value)| (reg.id(), RegValue::Word(*value))).collect();
        self.driver.registers().unwrap().write(VcpuId(vcpu), &changes)
    }

    pub fn step(&self, vcpu: u32, count: u64) -> vmtree_api::Result<u64> {
        self.driver.execution().unwrap().step(VcpuId(vcpu), count, &Cancel::default())
    }

    pub fn state(&self) -> RunState {
        self.driver.execution().unwrap().state().unwrap()
    }

    pub fn word(&self, gpa: u64) -> u64 {
        self.mailbox.word(gpa).unwrap()
    }

    /// Whether the guest's heart still beats.
    pub fn beats(&self, vcpu: u32) -> bool {
        let beat = || self.mailbox.counters(vcpu.into()).unwrap().get(Counter::Ticks);
        let before = beat();
        let deadline = Instant::now() + Duration::from_secs(3);
        while beat() == before && Instant::now() < deadline {
            sleep(Duration::from_millis(20));
        }
        beat() != before
    }

    /// Steps until rip is `site`, or gives up.
    pub fn step_to(&self, vcpu: u32, site: u64) {
        for _ in 0..20_000 {
            if self.read(vcpu).rip == site {
                return;
            }
            assert_eq!(self.step(vcpu, 1).unwrap(), 1);
        }
        panic!("vCPU {vcpu} never comes to {site:#x}");
    }
}

pub fn read(driver: &dyn Driver, vcpu: u32) -> Regs {
    let RegisterSet::X86_64(regs) = driver.registers().unwrap().read(VcpuId(vcpu)).unwrap() else {
        panic!("not x86-64")
    };
    *regs
}

/// A number that the monitor shows as `NAME=HEX` for vCPU `index`.
pub fn shown(text: &str, index: u32, name: &str) -> u64 {
    let vcpu = text.split("CPU#").find(|part| part.starts_with(&format!("{index}\n"))).unwrap();
    let (_, rest) = vcpu.split_once(&format!("{name}=")).unwrap_or_else(|| panic!("{name}: {vcpu}"));
    let digits: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
    u64::from_str_radix(&digits, 16).unwrap()
}

/// A segment as its descriptor in the guest's GDT has it, with the accessed bit set: loading sets it in the CPU.
pub fn descriptor(lab: &Lab, gdt: u64, selector: u16) -> Segment {
    let word = lab.word(gdt + u64::from(selector & !7));
    let base = word >> 16 & 0xff_ffff | word >> 32 & 0xff00_0000;
    let limit = (word & 0xffff | word >> 32 & 0xf_0000) as u32;
    let attr = (word >> 40 & 0xf0ff) as u16;
    let limit = if attr & 0x8000 != 0 { limit << 12 | 0xfff } else { limit };
    Segment { selector, base, limit, attr }
}
