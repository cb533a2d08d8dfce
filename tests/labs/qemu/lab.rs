//! Starts real QEMUs for tests, and asks them by their own human monitor, apart from what is tested.
//!
//! Used by `#[path = ".../tests/labs/qemu/lab.rs"] mod lab;`. A test that can't have its QEMU prints a line that
//! begins with `skipped` and passes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, dead_code)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, fs};

pub const QEMU: &str = "qemu-system-x86_64";

/// 64 MiB of RAM in a memfd that others can map.
pub const SHARED: &[&str] = &[
    "-m",
    "64M",
    "-object",
    "memory-backend-memfd,id=m,size=64M,share=on",
    "-machine",
    "pc,memory-backend=m",
];

/// Whether QEMU can be started; prints a line if not.
pub fn have_qemu() -> bool {
    let found = Command::new(QEMU)
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        println!("skipped: {QEMU} is not installed");
    }
    found
}

/// Whether this host lets QEMU use KVM; prints a line if not.
pub fn have_kvm() -> bool {
    let found = fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !found {
        println!("skipped: /dev/kvm can't be opened");
    }
    found
}

/// The major number of QEMU's release; 0 where there is none.
pub fn major() -> u32 {
    let Ok(output) = Command::new(QEMU).arg("--version").output() else { return 0 };
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_once("version ").unwrap().1.split('.').next().unwrap().parse().unwrap()
}

/// The value of `-plugin` for a QEMU that takes all answers, with its socket `agent.sock` in QEMU's working directory, as
/// vmtree finds it there; or why there is none.
pub fn plugin(program: &str) -> Result<String, &'static str> {
    if major() < 11 {
        return Err("QEMU 11 is not in PATH; see tests/labs/qemu/versions.sh");
    }
    let file = plugin_file(program).ok_or("the plugin is not built: cargo build -p vmtree-qemu-plugin")?;
    Ok(format!("{},socket=agent.sock", file.display()))
}

/// The plugin that was built last, beside a program of the same build.
fn plugin_file(program: &str) -> Option<PathBuf> {
    let folder = Path::new(program).parent().unwrap();
    let places = [folder.join("libvmtree_qemu.so"), folder.join("deps/libvmtree_qemu.so")];
    let made = |path: &PathBuf| fs::metadata(path).and_then(|found| found.modified()).ok();
    places.into_iter().filter(|path| path.is_file()).max_by_key(made)
}

/// The folder with the Debian guest's `vmlinuz` and `initrd.gz`, made if needed; prints a line if it can't be.
pub fn debian() -> Option<PathBuf> {
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("tests/labs/qemu/lab.sh"));
    let script = script.into_iter().find(|path| path.is_file()).expect("tests/labs/qemu/lab.sh");
    let output = Command::new(script).arg("prepare").output().expect("lab.sh");
    if !output.status.success() {
        println!("skipped: no Debian guest: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    Some(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()))
}

/// A running QEMU. It is killed when this is dropped, also by a test that fails.
pub struct Vm {
    child: Child,
    folder: tempfile::TempDir,
    monitor: Option<UnixStream>,
}

impl Vm {
    /// Starts QEMU with `args`, a QMP socket at [`Vm::qmp`], and a serial console that goes to a file.
    pub fn start(args: &[&str]) -> Self {
        Self::start_without_qmp(&[args, &["-qmp", "unix:qmp,server=on,wait=off"]].concat())
    }

    /// The same without a QMP socket. QEMU runs in [`Vm::folder`], so relative paths in `args` are there.
    pub fn start_without_qmp(args: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("vmtree-lab").tempdir().unwrap();
        let child = Command::new(QEMU)
            .args(["-display", "none", "-nodefaults", "-no-reboot"])
            .args(["-serial", "file:serial", "-monitor", "unix:hmp,server=on,wait=off"])
            .args(args)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stderr(fs::File::create(folder.path().join("stderr")).unwrap())
            .spawn()
            .unwrap();
        let mut vm = Self { child, folder, monitor: None };
        vm.await_monitor();
        vm
    }

    fn await_monitor(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if let Ok(monitor) = UnixStream::connect(self.folder.path().join("hmp")) {
                monitor.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                self.monitor = Some(monitor);
                self.until_prompt();
                return;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                let stderr = fs::read_to_string(self.folder.path().join("stderr")).unwrap();
                panic!("{QEMU} ended with {status}: {stderr}");
            }
            sleep(Duration::from_millis(20));
        }
        panic!("{QEMU} opened no monitor");
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The path of its QMP socket.
    pub fn qmp(&self) -> String {
        self.folder.path().join("qmp").to_str().unwrap().to_owned()
    }

    /// Runs a line of the human monitor and returns what it printed.
    pub fn human(&mut self, line: &str) -> String {
        self.monitor.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
        let text = self.until_prompt();
        // The first line is the echo of ours.
        text.split_once('\n').map_or("", |(_, answer)| answer).replace('\r', "")
    }

    fn until_prompt(&mut self) -> String {
        let mut text = Vec::new();
        let mut chunk = [0; 4096];
        while !text.ends_with(b"\n(qemu) ") {
            let bytes = self.monitor.as_mut().unwrap().read(&mut chunk).expect("the monitor's answer");
            assert_ne!(bytes, 0, "QEMU closed its monitor");
            text.extend_from_slice(&chunk[..bytes]);
        }
        text.truncate(text.len() - b"(qemu) ".len());
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The eight bytes at a guest-physical address, as QEMU sees them.
    pub fn xp(&mut self, gpa: u64) -> u64 {
        let text = self.human(&format!("xp /1gx {gpa:#x}"));
        let (_, value) = text.trim().split_once(": 0x").unwrap_or_else(|| panic!("xp {gpa:#x}: {text}"));
        u64::from_str_radix(value, 16).unwrap()
    }

    /// What the page tables from `cr3` on make of an address in a page of 4 KiB.
    pub fn walk(&mut self, cr3: u64, gva: u64) -> u64 {
        const FRAME: u64 = 0xf_ffff_ffff_f000;
        let entry = [39, 30, 21, 12].into_iter().fold(cr3, |table, shift| {
            let entry = self.xp((table & FRAME) + (gva >> shift & 0x1ff) * 8);
            assert_eq!(entry & 1, 1, "{gva:#x} is not mapped by {cr3:#x}");
            entry
        });
        (entry & FRAME) + (gva & 0xfff)
    }

    /// Guest-physical memory as QEMU saves it.
    pub fn pmemsave(&mut self, gpa: u64, bytes: usize) -> Vec<u8> {
        let answer = self.human(&format!("pmemsave {gpa:#x} {bytes} saved"));
        assert_eq!(answer.trim(), "", "pmemsave");
        fs::read(self.folder.path().join("saved")).unwrap()
    }

    /// What the guest has written to its serial console.
    pub fn serial(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.path().join("serial")).unwrap_or_default()).into_owned()
    }

    /// The number in base 16 that the Debian guest said after `what`, or before it on its line.
    pub fn said(&self, what: &str) -> u64 {
        let serial = self.serial();
        let line =
            serial.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{what}: {serial}"));
        let number =
            line.rsplit_once("0x").map_or_else(|| line.split(' ').next().unwrap(), |(_, number)| number);
        u64::from_str_radix(number.trim(), 16).unwrap()
    }

    /// Waits until the serial console holds `text`.
    pub fn await_serial(&self, text: &str, limit: Duration) {
        let deadline = Instant::now() + limit;
        while !self.serial().contains(text) {
            assert!(Instant::now() < deadline, "the guest did not say '{text}' but: {}", self.serial());
            sleep(Duration::from_millis(50));
        }
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    /// Waits for a killed QEMU, which is a zombie until then.
    pub fn reap(&mut self) {
        self.child.wait().unwrap();
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
