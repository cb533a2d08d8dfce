//! A stock QEMU with the guest in it, its RAM a file that the test reads and writes.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::NamedTempFile;
use vmtree_guest::Mailbox;

const QEMU: &str = "qemu-system-x86_64";
/// How long anything may take: QEMU shares two cores with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running QEMU; it ends with the value, also when a test fails.
pub struct Qemu {
    child: Child,
    _files: [NamedTempFile; 2],
    /// The guest's mailbox.
    pub mailbox: Mailbox<File>,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Boots the guest on `vcpus` vCPUs of QEMU's TCG and waits until it runs; `None`, said aloud, where there is no QEMU.
pub fn boot(test: &str, vcpus: u64) -> Option<Qemu> {
    boot_on(test, vcpus, "qemu64")
}

/// The same on another CPU model.
pub fn boot_on(test: &str, vcpus: u64, cpu: &str) -> Option<Qemu> {
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
        .args(["-cpu", cpu, "-smp", &vcpus.to_string(), "-kernel", image.path().to_str().unwrap()])
        .args(["-display", "none", "-nic", "none", "-serial", "none", "-monitor", "none", "-no-reboot"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mailbox = Mailbox::new(ram.reopen().unwrap());
    let qemu = Qemu { child, _files: [image, ram], mailbox };
    qemu.mailbox.wait_running(PATIENCE).unwrap();
    Some(qemu)
}
