//! What is measured: vmtree's files and the baselines.

use std::fs::{self, File};
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use crate::bare::Bare;
use crate::load::SPAN;

/// A way to read memory.
pub struct Subject {
    pub name: &'static str,
    pub path: PathBuf,
    /// The process that serves it, where one does.
    pub server: Option<u32>,
    way: Way,
}

enum Way {
    Pread,
    /// At this address of the server.
    ProcMem(u64),
    Readv(u64),
}

/// Reads a whole buffer at an offset.
pub type Reader = Box<dyn Fn(&mut [u8], u64)>;

impl Subject {
    /// A reader of its own, with its own open file.
    pub fn reader(&self) -> Reader {
        match self.way {
            Way::Pread => {
                let file = File::open(&self.path).expect("a subject to open");
                Box::new(move |buf, offset| file.read_exact_at(buf, offset).expect("a read"))
            }
            Way::ProcMem(base) => {
                let file = File::open(&self.path).expect("/proc/PID/mem");
                Box::new(move |buf, offset| file.read_exact_at(buf, base + offset).expect("a read"))
            }
            Way::Readv(base) => {
                let pid = Pid::from_raw(self.server.unwrap_or(0) as i32);
                Box::new(move |buf, offset| {
                    let remote = RemoteIoVec { base: (base + offset) as usize, len: buf.len() };
                    let wanted = buf.len();
                    let got = process_vm_readv(pid, &mut [IoSliceMut::new(buf)], &[remote]).expect("readv");
                    assert_eq!(got, wanted);
                })
            }
        }
    }
}

/// Everything that is set up, and torn down when it goes.
pub struct Lab {
    dir: tempfile::TempDir,
    bare: Bare,
    daemon: u32,
}

impl Lab {
    /// Mounts the built-in machine and the bare file, and fills all memory.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["vm", "bare"] {
            fs::create_dir(dir.path().join(name)).expect("a mountpoint");
        }
        let bare = Bare::mount(&dir.path().join("bare"), SPAN as usize);
        let vm = dir.path().join("vm");
        let status =
            Command::new(env!("CARGO_BIN_EXE_vmtree")).args(["mount", "emu:ram=1G"]).arg(&vm).status();
        assert!(status.is_ok_and(|status| status.success()), "vmtree mount");
        touch(&File::options().read(true).write(true).open(vm.join("ram/low")).expect("ram/low"));
        let info = fs::read_to_string(vm.join("info")).expect("info");
        let pid = info.lines().find_map(|line| line.strip_prefix("daemon_pid ")).expect("daemon_pid");
        Self { dir, bare, daemon: pid.parse().expect("a pid") }
    }

    /// All subjects, the baselines first. All but `bare` read the same bytes: the guest's low memory.
    pub fn subjects(&self) -> Vec<Subject> {
        let vm = self.dir.path().join("vm");
        let base = self.mapping();
        let low = vm.join("ram/low");
        vec![
            Subject { name: "memfd", path: self.backing(), server: None, way: Way::Pread },
            Subject { name: "bare", path: self.bare.file(), server: None, way: Way::Pread },
            Subject {
                name: "procmem",
                path: format!("/proc/{}/mem", self.daemon).into(),
                server: Some(self.daemon),
                way: Way::ProcMem(base),
            },
            Subject { name: "readv", path: PathBuf::new(), server: Some(self.daemon), way: Way::Readv(base) },
            Subject { name: "ram", path: low, server: Some(self.daemon), way: Way::Pread },
            Subject { name: "mem", path: vm.join("mem"), server: Some(self.daemon), way: Way::Pread },
        ]
    }

    /// The file behind `ram/low`, as the daemon has it open.
    fn backing(&self) -> PathBuf {
        let open = fs::read_dir(format!("/proc/{}/fd", self.daemon)).expect("the daemon's files");
        let paths = open.filter_map(|entry| Some(entry.ok()?.path()));
        let of_low = |path: &PathBuf| {
            fs::read_link(path).is_ok_and(|target| target.to_string_lossy().contains("memfd:vmtree-low"))
        };
        paths.into_iter().find(of_low).expect("the memfd of low memory")
    }

    /// The register file, if the machine shows registers.
    pub fn registers(&self) -> Option<PathBuf> {
        Some(self.dir.path().join("vm/vcpu/0/regs/all")).filter(|path| path.exists())
    }

    /// Where the daemon maps the guest's low memory: its largest shared mapping of a memfd.
    fn mapping(&self) -> u64 {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.daemon)).expect("maps");
        let ranges = maps.lines().filter(|line| line.contains("/memfd:")).filter_map(|line| {
            let (start, end) = line.split(' ').next()?.split_once('-')?;
            let start = u64::from_str_radix(start, 16).ok()?;
            Some((u64::from_str_radix(end, 16).ok()? - start, start))
        });
        ranges.max().expect("a mapping of guest memory").1
    }
}

/// Writes every page back as it is, so that it exists. Above 8 MiB, where the guest has nothing.
fn touch(file: &File) {
    let mut byte = [0];
    for offset in (8 << 20..SPAN).step_by(4096) {
        file.read_exact_at(&mut byte, offset).expect("a read");
        file.write_all_at(&byte, offset).expect("a write");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let vm = self.dir.path().join("vm");
        let _ = Command::new(env!("CARGO_BIN_EXE_vmtree")).arg("umount").arg(vm).status();
        self.bare.unmount();
    }
}
