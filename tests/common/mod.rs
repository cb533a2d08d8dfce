//! What the tests of the program share: a mountpoint of their own, and the processes behind a mount, which are found
//! by their mountpoint and by their parent.
#![allow(dead_code, missing_docs, reason = "each test uses a part of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A mountpoint of our own; what is left there in the end is taken away.
pub struct Lab {
    pub folder: tempfile::TempDir,
    pub mountpoint: PathBuf,
}

/// A lab, unless mounts can't be made here.
pub fn lab(test: &str) -> Option<Lab> {
    if fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
        eprintln!("SKIPPED {test}: /dev/fuse can't be opened");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let mountpoint = folder.path().canonicalize().unwrap().join("vm 1");
    fs::create_dir(&mountpoint).unwrap();
    Some(Lab { folder, mountpoint })
}

pub fn vmtree() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmtree"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn kill(pid: u32, signal: i32) {
    assert!(pid > 1);
    let status = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status().unwrap();
    assert!(status.success());
}

/// The state letter and the parent of a process, from /proc/PID/stat.
pub fn stat(pid: u32) -> Option<(char, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

pub fn alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z')
}

pub fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

pub fn children(parent: u32) -> Vec<u32> {
    processes().filter(|&pid| alive(pid) && stat(pid).is_some_and(|(_, of)| of == parent)).collect()
}

pub fn guardians(daemon: u32) -> Vec<u32> {
    let is_guardian = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line == b"vmtree\0guardian\0"
    };
    children(daemon).into_iter().filter(is_guardian).collect()
}

impl Lab {
    pub fn run(&self, arguments: &[&str]) -> Output {
        vmtree().args(arguments).arg(&self.mountpoint).output().unwrap()
    }

    /// Mounts in the background and returns the daemon's pid.
    pub fn mount(&self) -> u32 {
        let output = self.run(&["mount", "emu:"]);
        assert!(output.status.success(), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
        let daemons = self.daemons();
        assert_eq!(daemons.len(), 1);
        wait_until("two guardians", || guardians(daemons[0]).len() == 2);
        daemons[0]
    }

    /// Mounts in front.
    pub fn foreground(&self, command: &mut Command) -> Child {
        let child = command.args(["mount", "-f", "emu:"]).arg(&self.mountpoint);
        let child = child.stderr(Stdio::null()).spawn().unwrap();
        wait_until("the mount answers", || self.answers());
        child
    }

    pub fn daemons(&self) -> Vec<u32> {
        let path = self.mountpoint.to_str().unwrap();
        let serves = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.starts_with("vmtree\0serve\0") && line.contains(path)
        };
        processes().filter(serves).filter(|&pid| alive(pid)).collect()
    }

    /// The types of what is mounted here, as the kernel has it.
    pub fn mounted(&self) -> Vec<String> {
        let path = self.mountpoint.to_str().unwrap().replace(' ', "\\040");
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here = table.lines().filter(|line| line.split(' ').nth(4) == Some(&path));
        here.map(|line| line.split(" - ").nth(1).unwrap().split(' ').next().unwrap().to_owned()).collect()
    }

    pub fn answers(&self) -> bool {
        fs::read_to_string(self.mountpoint.join("info")).is_ok_and(|info| info.contains("emu"))
    }

    pub fn umount(&self) {
        let output = self.run(&["umount"]);
        assert!(output.status.success(), "{output:?}");
    }

    /// Waits until these processes are gone and nothing is mounted.
    pub fn assert_clean(&self, pids: &[u32]) {
        wait_until("all processes are gone", || !pids.iter().any(|&pid| alive(pid)));
        wait_until("nothing is mounted", || self.mounted().is_empty());
        assert_eq!(self.daemons(), [0; 0]);
        assert_eq!(fs::read_dir(&self.mountpoint).unwrap().count(), 0);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for _ in self.mounted() {
            let _ = Command::new("umount").arg("-l").arg(&self.mountpoint).status();
        }
    }
}

/// All processes of a mount.
pub fn family(daemon: u32) -> Vec<u32> {
    let mut pids = guardians(daemon);
    pids.push(daemon);
    pids
}

/// A process that stands in this directory.
pub fn sleeper(directory: &Path) -> Child {
    Command::new("sleep").arg("60").current_dir(directory).spawn().unwrap()
}
