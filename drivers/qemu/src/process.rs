//! A process as /proc shows it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::options::{CommandLine, Listener};

/// The start of /proc/PID.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// The file name of its program.
    pub program: String,
    /// Its arguments, without the program's name.
    pub arguments: Vec<String>,
}

impl Process {
    /// Reads what /proc shows of `pid`.
    ///
    /// # Errors
    /// There is no such process, or it has ended and waits for its parent.
    pub fn read(pid: u32) -> io::Result<Self> {
        let raw = fs::read(format!("/proc/{pid}/cmdline"))?;
        let mut words = raw.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        let first = words.next().unwrap_or_default();
        let arguments: Vec<String> = words.collect();
        // Another user's link can't be read; then its first argument has to do.
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_else(|_| PathBuf::from(first));
        let program = program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let program = program.strip_suffix(" (deleted)").unwrap_or(&program).to_owned();
        Ok(Self { pid, program, arguments })
    }

    /// All processes that run QEMU, in the order of their ids.
    #[must_use]
    pub fn all_qemus() -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut found: Vec<Self> =
            pids.filter_map(|pid| Self::read(pid).ok()).filter(Self::is_qemu).collect();
        found.sort_by_key(|process| process.pid);
        found
    }

    /// Whether its program is QEMU by name: Debian's and upstream's qemu-system-ARCH, Red Hat's qemu-kvm, and kvm.
    #[must_use]
    pub fn is_qemu(&self) -> bool {
        self.program.starts_with("qemu-system-") || matches!(self.program.as_str(), "qemu-kvm" | "kvm")
    }

    /// What its arguments say.
    #[must_use]
    pub fn command_line(&self) -> CommandLine {
        CommandLine::parse(&self.arguments)
    }

    /// The paths of its QMP sockets, as we reach them.
    #[must_use]
    pub fn qmp_sockets(&self) -> Vec<PathBuf> {
        let monitors = self.command_line().monitors;
        let paths = monitors.iter().filter_map(|listener| match listener {
            Listener::Path(path) => Some(PathBuf::from(path)),
            Listener::Fd(fd) => self.bound_path(*fd),
        });
        paths.filter_map(|path| self.reach(&path)).collect()
    }

    /// The path of the socket of vmtree's plugin, as we reach it.
    #[must_use]
    pub fn agent_socket(&self) -> Option<PathBuf> {
        self.reach(Path::new(&self.command_line().agent?))
    }

    /// The path that the socket with this descriptor is bound to.
    fn bound_path(&self, fd: u32) -> Option<PathBuf> {
        let inode = socket_inode(&fs::read_link(format!("/proc/{}/fd/{fd}", self.pid)).ok()?)?;
        self.bound_sockets().remove(&inode)
    }

    /// Whether one of its descriptors is the socket at `path`.
    #[must_use]
    pub fn listens_at(&self, path: &Path) -> bool {
        let Ok(entries) = fs::read_dir(format!("/proc/{}/fd", self.pid)) else { return false };
        let bound = self.bound_sockets();
        let inodes = entries.flatten().filter_map(|entry| socket_inode(&fs::read_link(entry.path()).ok()?));
        let mut paths = inodes.filter_map(|inode| self.reach(bound.get(&inode)?));
        paths.any(|at| same_file(&at, path))
    }

    fn bound_sockets(&self) -> HashMap<u64, PathBuf> {
        let table = fs::read(format!("/proc/{}/net/unix", self.pid)).unwrap_or_default();
        bound_sockets(&table)
    }

    /// A path of the process as a path of ours: it may have another working directory and another root.
    fn reach(&self, path: &Path) -> Option<PathBuf> {
        let pid = self.pid;
        let absolute = match path.is_absolute() {
            true => path.to_owned(),
            false => fs::read_link(format!("/proc/{pid}/cwd")).ok()?.join(path),
        };
        let rooted = Path::new(&format!("/proc/{pid}/root")).join(absolute.strip_prefix("/").ok()?);
        [absolute, rooted].into_iter().find(|path| path.exists())
    }
}

/// Whether both paths lead to one file; they may go through links and other roots.
fn same_file(a: &Path, b: &Path) -> bool {
    let identity = |path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    identity(a).is_some_and(|file| Some(file) == identity(b))
}

/// Reads `socket:[INODE]`.
fn socket_inode(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Reads /proc/net/unix: seven fields, of which the last is the inode, then the path of a bound socket.
fn bound_sockets(table: &[u8]) -> HashMap<u64, PathBuf> {
    let lines = table.split(|byte| *byte == b'\n').skip(1);
    lines
        .filter_map(|line| {
            let mut rest = line;
            let mut inode = None;
            for _ in 0..7 {
                rest = rest.trim_ascii_start();
                let end = rest.iter().position(|byte| *byte == b' ')?;
                let (word, behind) = rest.split_at(end);
                inode = std::str::from_utf8(word).ok()?.parse().ok();
                rest = behind;
            }
            // A name that begins with @ is an abstract one, which no path reaches.
            let path = rest.strip_prefix(b" ").filter(|path| !path.is_empty() && !path.starts_with(b"@"))?;
            Some((inode?, PathBuf::from(std::ffi::OsStr::from_bytes(path))))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_the_table_of_sockets() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 14952 /run/a b.qmp\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 14953\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 14954 @abstract\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 14955 qmp\n";
        let bound = [(14952, PathBuf::from("/run/a b.qmp")), (14955, PathBuf::from("qmp"))];
        assert_eq!(bound_sockets(table), HashMap::from(bound));
    }

    #[test]
    fn this_process_is_no_qemu() {
        let me = Process::read(std::process::id()).unwrap();
        assert!(!me.is_qemu() && !me.program.is_empty());
        assert!(Process::read(u32::MAX).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(table: Vec<u8>, line in "[0-9a-f: ]{0,80}[/@ ]{0,3}[a-z]{0,3}") {
            let _ = bound_sockets(&table);
            let _ = bound_sockets(format!("x\n{line}\n").as_bytes());
            let _ = socket_inode(Path::new(&line));
        }
    }
}
