//! A stock QEMU with the guest in it, its RAM a file that the test reads and writes.

use std::io;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::NamedTempFile;
use vmtree_guest::{Bytes, Mailbox};

const QEMU: &str = "qemu-system-x86_64";
/// How long anything may take: QEMU shares two cores with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The RAM below 3 GiB of a running QEMU.
pub struct Ram(NamedTempFile);

impl Bytes for Ram {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.as_file().read_exact_at(buf, gpa)
    }

    fn write(&self, gpa: u64, data: &[u8]) -> io::Result<()> {
        self.0.as_file().write_all_at(data, gpa)
    }
}

/// A running QEMU; it ends with the value, also when a test fails.
pub struct Qemu {
    child: Child,
    _image: NamedTempFile,
    /// The guest's mailbox.
    pub mailbox: Mailbox<Ram>,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Boots the guest on `vcpus` vCPUs of QEMU's TCG and waits until it runs; `None`, said aloud, where there is no QEMU.
pub fn boot(test: &str, vcpus: u64) -> Option<Qemu> {
    if Command::new(QEMU).arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: {test}: {QEMU} is not installed");
        return None;
    }
    let image = NamedTempFile::new().unwrap();
    std::fs::write(image.path(), vmtree_guest::elf()).unwrap();
    let ram = NamedTempFile::new_in("/dev/shm").unwrap();
    ram.as_file().set_len(64 << 20).unwrap();
    let backend =
        format!("memory-backend-file,id=m,size=64M,share=on,mem-path={}", ram.path().to_str().unwrap());
    let child = Command::new(QEMU)
        .args(["-accel", "tcg", "-m", "64M", "-machine", "pc,memory-backend=m", "-object", &backend])
        .args(["-smp", &vcpus.to_string(), "-kernel", image.path().to_str().unwrap()])
        .args(["-display", "none", "-nic", "none", "-serial", "none", "-monitor", "none", "-no-reboot"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let qemu = Qemu { child, _image: image, mailbox: Mailbox::new(Ram(ram)) };
    qemu.mailbox.wait_running(PATIENCE).unwrap();
    Some(qemu)
}
