//! Event files under real mounts, by the programs that people use: readers, controllers, views, and the ends of both. The
//! machine's events are the test's own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod control;
mod cost;
mod driver;
mod ends;
#[path = "../faults/mounted.rs"]
mod mounted;
mod names;
mod poll;
mod program;
mod readers;
mod views;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use driver::{Script, Scripted};
use mounted::Mounted;

/// A mount of a scripted machine.
pub(crate) struct Lab {
    pub(crate) mounted: Mounted,
    pub(crate) script: Script,
}

/// One with mount options, unless this host can't mount.
pub(crate) fn lab(test: &str, options: &str) -> Option<Lab> {
    if !mounted::possible(test) {
        return None;
    }
    let (machine, script) = Scripted::new();
    let list = if options.is_empty() { "threads=4".to_owned() } else { format!("threads=4,{options}") };
    Some(Lab { mounted: Mounted::with(machine, &list), script })
}

impl Lab {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.mounted.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// One write(2), as `echo` does it.
    pub(crate) fn write(&self, name: &str, text: &str) -> io::Result<()> {
        fs::write(self.path(name), text)
    }

    /// A shell in the mountpoint.
    pub(crate) fn bash(&self, script: &str) -> Job {
        Job(Command::new("bash")
            .args(["-c", script])
            .current_dir(self.mounted.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap())
    }

    /// Opens to control.
    pub(crate) fn control(&self, name: &str) -> io::Result<fs::File> {
        fs::File::options().read(true).write(true).open(self.path(name))
    }

    /// The last line of `errors`.
    pub(crate) fn last_error(&self) -> String {
        self.text("errors").lines().last().unwrap_or_default().to_owned()
    }

    /// The mount's orderly end, which must not take long.
    pub(crate) fn end(self) {
        let took = self.mounted.end();
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
}

/// A child, killed if the test ends early.
pub(crate) struct Job(Child);

impl Job {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
    }

    /// Waits for its end; how long that took.
    pub(crate) fn ends_within(&mut self, limit: Duration) -> Duration {
        let begun = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < limit, "still there after {limit:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        begun.elapsed()
    }

    /// Its end, and what it printed.
    pub(crate) fn output(mut self) -> Output {
        self.ends_within(Duration::from_secs(20));
        let (mut out, mut err) = (Vec::new(), Vec::new());
        io::Read::read_to_end(self.0.stdout.as_mut().unwrap(), &mut out).unwrap();
        io::Read::read_to_end(self.0.stderr.as_mut().unwrap(), &mut err).unwrap();
        Output { status: self.0.wait().unwrap(), stdout: out, stderr: err }
    }

    /// What it printed, line by line, once it has ended well.
    pub(crate) fn lines(self) -> Vec<String> {
        let output = self.output();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The number that a record begins with.
pub(crate) fn seq(record: &str) -> u64 {
    let word = record.split(' ').next().unwrap();
    word.strip_prefix("seq=").unwrap_or_else(|| panic!("{record}")).parse().unwrap()
}
