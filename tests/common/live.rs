//! A mount of one SOURCE for one test, used as its users would: by open, read and write.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::Command;

use super::{Lab, lab};

/// End of the lower block of `emu:ram=64M`, where the hole below 4 GiB begins.
pub const LOW_END: u64 = 48 << 20;
/// Start of the upper block.
pub const HIGH: u64 = 4 << 30;
/// End of the upper block of `emu:ram=64M`, and of `mem`.
pub const END: u64 = HIGH + (16 << 20);

/// Tells, past the capture of the test harness, that a test did not run.
pub fn skip(test: &str, why: &str) {
    let _ = writeln!(io::stderr(), "SKIPPED {test}: {why}");
}

/// Whether a program is to be found; else the test is told as skipped.
pub fn has(test: &str, program: &str) -> bool {
    let found =
        path().is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    if !found {
        skip(test, &format!("{program} is not installed"));
    }
    found
}

/// PATH, with the place of tools that `.ci/run` builds in front.
pub fn path() -> Option<std::ffi::OsString> {
    let tools = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/bin"));
    let rest = std::env::var_os("PATH")?;
    std::env::join_paths([tools].into_iter().chain(std::env::split_paths(&rest))).ok()
}

/// A mount that ends with the test, also with one that panics.
pub struct Live {
    lab: Lab,
}

impl Live {
    /// Mounts `source` with the options of one `-o`, or tells why the test is skipped.
    pub fn mount(test: &str, source: &str, options: &str) -> Option<Self> {
        if fs::metadata("/proc/self").map(|me| me.uid()).unwrap_or(1) != 0 {
            skip(test, "it takes root");
            return None;
        }
        let lab = lab(test)?;
        let mountpoint = lab.mountpoint.to_str().unwrap().to_owned();
        let mut command = super::vmtree();
        command.args(["mount", source, &mountpoint]);
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        let output = command.output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        Some(Self { lab })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.lab.mountpoint.join(name)
    }

    /// A folder of the test's own, outside the mount.
    pub fn scratch(&self) -> &std::path::Path {
        self.lab.folder.path()
    }

    pub fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("read {name}: {error}"))
    }

    pub fn open(&self, name: &str) -> File {
        OpenOptions::new().read(true).write(true).open(self.path(name)).unwrap()
    }

    /// One write(2) to a file, as `>` of a shell opens it.
    pub fn write(&self, name: &str, data: impl AsRef<[u8]>) -> io::Result<usize> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(self.path(name))?;
        file.write(data.as_ref())
    }

    pub fn read_at(&self, name: &str, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut buf = vec![0xee; bytes];
        let got = File::open(self.path(name))?.read_at(&mut buf, offset)?;
        buf.truncate(got);
        Ok(buf)
    }

    /// The lines of `errors`.
    pub fn errors(&self) -> Vec<String> {
        self.text("errors").lines().map(str::to_owned).collect()
    }

    /// A command that finds our tools and the `vmtree` of this build.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("PATH", path().unwrap()).current_dir(self.scratch());
        command
    }
}

impl Live {
    /// The mount has ended by itself; nothing of it may be left.
    pub fn gone(self) {
        super::wait_until("the daemon is gone", || self.lab.daemons().is_empty());
        super::wait_until("nothing is mounted", || self.lab.mounted().is_empty());
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if self.lab.mounted().is_empty() {
            return;
        }
        // What `umount` can't end, the lab takes away.
        let done = self.lab.run(&["umount"]);
        if !done.status.success() && !std::thread::panicking() {
            panic!("{done:?}");
        }
    }
}
