//! The negative control: a folder of plain files that looks like a mounted VM, with a guest played by a thread. Each
//! check that plain files can satisfy passes there, and every check fails there once it is lied to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod guest;
mod lies;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use vmtree_guest::layout;
use vmtree_guest::mailbox::{self, header, state};

use crate::Vm;
use crate::regs::Regs;

/// All RAM, from 0 on.
const RAM: u64 = 8 << 20;
const YES: &str = "memory ram_files registers msrs pause step virtual_memory";

/// A fake VM.
pub struct Fake {
    folder: tempfile::TempDir,
    pub mem: fs::File,
    stop: Arc<AtomicBool>,
    guest: Option<JoinHandle<()>>,
    /// How long anything may take; a lie is often found out by waiting.
    pub patience: Duration,
}

/// `regs/all` of the fake's only vCPU: it idles in the kernel.
fn registers() -> String {
    let words = [
        ("rax", 0),
        ("rbx", 1),
        ("r12", 5),
        ("r14", layout::VCPU_AREAS),
        ("rsp", layout::VCPU_AREAS + layout::vcpu::STACK - 16),
        ("rip", layout::TEXT64 + 0x2000),
        ("cr0", guest::CR0),
        ("cr2", 0),
        ("cr3", layout::KERNEL_PML4),
        ("cr4", guest::CR4),
        ("cr8", 0),
        ("efer", 0xd01),
        ("lstar", guest::LSTAR),
    ];
    let mut text = String::new();
    for (name, value) in words {
        text += &format!("{name}={value:#018x}\n");
    }
    text + "cs.sel=0x0008 cs.base=0x0000000000000000 cs.limit=0xffffffff cs.attr=0xa09b\ngdtr.base=0x0000000000381000 gdtr.limit=0x0037\n"
}

impl Fake {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for dir in ["ram", "vcpu/0/regs"] {
            fs::create_dir_all(path(dir)).unwrap();
        }
        let mem = fs::File::options().read(true).write(true).create_new(true).open(path("mem")).unwrap();
        mem.write_all_at(&vec![0; RAM as usize], 0).unwrap();
        fs::hard_link(path("mem"), path("ram/all")).unwrap();
        let yes = YES.split(' ').map(|what| format!("{what} yes\n")).collect::<String>();
        let info = format!("driver fake\nvcpus 1\nram_bytes {RAM}\nmax_gpa {:#x}\nholes zero\n", RAM - 1);
        let map = format!("{:#018x}-{RAM:#018x} ram ram/all@0x0\n", 0);
        let files = [
            ("capabilities", yes.as_str()),
            ("info", &info),
            ("mem.map", &map),
            ("errors", ""),
            ("README", ""),
            ("ctl", ""),
            ("state", "running\n"),
            ("vcpu/0/state", "running\n"),
            ("vcpu/0/ctl", ""),
            ("vcpu/0/msr", ""),
            ("vcpu/0/vmem", ""),
        ];
        files.iter().for_each(|(name, text)| fs::write(path(name), text).unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let mut fake = Self { folder, mem, stop, guest: None, patience: Duration::from_secs(1) };
        fake.show(&registers());
        fake.load();
        let (mem, stop) = (fake.mem.try_clone().unwrap(), fake.stop.clone());
        fake.guest = Some(std::thread::spawn(move || guest::run(&mem, &stop)));
        fake
    }

    /// The guest's image and the mailbox's header.
    fn load(&self) {
        for part in vmtree_guest::asm::assemble().unwrap().parts {
            self.mem.write_all_at(&part.bytes, part.gpa).unwrap();
        }
        let words = [
            (header::MAGIC, u64::from_le_bytes(mailbox::MAGIC)),
            (header::VCPUS, 1),
            (header::STATE, state::RUNNING),
            (header::BACKGROUND, 1),
            (header::LSTAR, guest::LSTAR),
            (header::KERNEL_CR3, layout::KERNEL_PML4),
            (header::GREETING, layout::GREETING),
            (header::REPLY, layout::REPLY),
            (header::DATA, layout::DATA),
            (header::CODE, layout::CODE),
            (header::SCRATCH, layout::SCRATCH),
            (header::GUARD, layout::GUARD),
            (header::USER_DATA, layout::USER_DATA),
            (header::USER_UNMAPPED, layout::USER_UNMAPPED),
        ];
        for (offset, value) in words {
            self.mem.write_all_at(&value.to_le_bytes(), mailbox::MAILBOX + offset).unwrap();
        }
    }

    /// Makes the files of the registers from the text of `regs/all`.
    pub fn show(&self, all: &str) {
        let regs = Regs::parse_all(all).unwrap();
        self.put("vcpu/0/regs/all", all);
        fs::write(self.path("vcpu/0/regs/raw"), regs.to_raw()).unwrap();
        for name in regs.names() {
            let line = all
                .lines()
                .find(|line| line.starts_with(&format!("{name}=")) || line.starts_with(&format!("{name}.")));
            let line = line.unwrap().replace(&format!("{name}."), "").replace(&format!("{name}="), "");
            self.put(&format!("vcpu/0/regs/{name}"), &format!("{line}\n"));
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn put(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Replaces a part of a file, which must be there.
    pub fn change(&self, name: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(from), "{name}: {text}");
        self.put(name, &text.replace(from, to));
    }

    /// Stops the guest: no order is done any more.
    pub fn kill(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.guest.take().into_iter().for_each(|guest| guest.join().unwrap());
    }

    pub fn vm(&self) -> Vm {
        let mut vm = Vm::open(self.folder.path()).unwrap();
        vm.patience = self.patience;
        vm
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.kill();
    }
}
