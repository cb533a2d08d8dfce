//! A mounted VM, used as its users would: by open, read and write.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use vmtree_guest::Mailbox;
use vmtree_guest::mailbox::header;

use crate::Checked;
use crate::map::{self, Region};
use crate::pace::Pace;
use crate::regs::Regs;

/// How long anything may take that the guest or the mount does.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A mounted VM that runs the guest.
pub struct Vm {
    root: PathBuf,
    capabilities: BTreeMap<String, Result<(), String>>,
    info: BTreeMap<String, String>,
    /// The guest's mailbox, over `mem`.
    pub(crate) mailbox: Mailbox<File>,
    /// How many vCPUs take part in the guest.
    pub(crate) vcpus: u64,
    /// How long anything may take.
    pub(crate) patience: Duration,
    /// Rounds of an ordered spin in a millisecond, once measured.
    pub(crate) speed: OnceCell<u64>,
    pub(crate) pace: Pace,
}

/// A line of `capabilities`: `WHAT yes` or `WHAT no: WHY`.
fn capability(line: &str) -> Result<(String, Result<(), String>), String> {
    if let Some(what) = line.strip_suffix(" yes") {
        return Ok((what.to_owned(), Ok(())));
    }
    match line.split_once(" no: ") {
        Some((what, why)) => Ok((what.to_owned(), Err(why.to_owned()))),
        None => Err(format!("capabilities: '{line}' says neither yes nor 'no: WHY'")),
    }
}

impl Vm {
    /// Opens what is mounted at `root`; the guest may still be booting.
    ///
    /// # Errors
    /// It is no mount of vmtree, or one that this program can't use; in words.
    pub fn open(root: &Path) -> Result<Self, String> {
        let read =
            |name: &str| fs::read_to_string(root.join(name)).map_err(|error| format!("{name}: {error}"));
        let capabilities: BTreeMap<_, _> =
            read("capabilities")?.lines().map(capability).collect::<Result<_, _>>()?;
        if let Some(Err(why)) = capabilities.get("write") {
            return Err(format!("the guest takes no orders without writes: {why}"));
        }
        let info = read("info")?;
        let info = info.lines().filter_map(|line| line.split_once(' '));
        let info = info.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let mem = File::options().read(true).write(true).open(root.join("mem"));
        let mem = mem.map_err(|error| format!("mem: {error}"))?;
        Ok(Self {
            root: root.to_owned(),
            capabilities,
            info,
            mailbox: Mailbox::new(mem),
            vcpus: 1,
            patience: PATIENCE,
            speed: OnceCell::new(),
            pace: Pace::default(),
        })
    }

    /// The same, which waits no longer than this for anything that the guest or the mount does.
    #[must_use]
    pub fn patient(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Waits until the guest runs on all its vCPUs.
    ///
    /// # Errors
    /// It does not, in words.
    pub fn booted(mut self) -> Result<Self, String> {
        self.mailbox.wait_running(self.patience).map_err(|error| error.to_string())?;
        self.vcpus = self.header(header::VCPUS)?;
        Ok(self)
    }

    /// Why the mount does not offer something, if so. A `*` stands for any words: one line that fits must say yes.
    #[must_use]
    pub fn lacks(&self, what: &str) -> Option<String> {
        if let Some((start, end)) = what.split_once('*') {
            let fits =
                |key: &&String| key.len() >= what.len() - 1 && key.starts_with(start) && key.ends_with(end);
            let mut keys = self.capabilities.keys().filter(fits);
            return match keys.find(|key| self.lacks(key).is_none()) {
                Some(_) => None,
                None => Some(format!("no line of '{what}' says yes in capabilities")),
            };
        }
        match self.capabilities.get(what) {
            Some(Ok(())) => None,
            Some(Err(why)) => Some(why.clone()),
            None => Some(format!("capabilities has no line '{what}'")),
        }
    }

    /// The kinds of event of which the mount offers something.
    pub(crate) fn event_kinds(&self) -> Vec<String> {
        let yes = self.capabilities.iter().filter(|(_, has)| has.is_ok()).map(|(what, _)| what);
        let mut kinds: Vec<String> =
            yes.filter_map(|what| Some(what.strip_prefix("event ")?.split(' ').next()?.to_owned())).collect();
        kinds.dedup();
        kinds
    }

    pub(crate) fn offers(&self, what: &str) -> bool {
        self.lacks(what).is_none()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn fact(&self, key: &str) -> Result<&str, String> {
        self.info.get(key).map(String::as_str).ok_or_else(|| format!("info has no line '{key}'"))
    }

    pub(crate) fn text(&self, name: &str) -> Result<String, String> {
        fs::read_to_string(self.path(name)).map_err(|error| format!("read {name}: {error}"))
    }

    /// One write(2) to a control file.
    pub(crate) fn try_write(&self, name: &str, data: &[u8]) -> io::Result<usize> {
        OpenOptions::new().write(true).open(self.path(name))?.write(data)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> Checked {
        let done = self.try_write(name, text.as_bytes());
        let done = done.map_err(|error| format!("write '{}' to {name}: {error}", text.trim()))?;
        ensure!(done == text.len(), "write '{}' to {name}: only {done} bytes were taken", text.trim());
        Ok(())
    }

    /// A write that must be refused with this errno; `errors` then has a line that names the file.
    pub(crate) fn refused(&self, name: &str, data: &[u8], errno: (i32, &str)) -> Checked {
        let what = String::from_utf8_lossy(data.get(..data.len().min(48)).unwrap_or_default()).into_owned();
        match self.try_write(name, data) {
            Ok(bytes) => {
                return Err(format!("'{what}' to {name}: {bytes} bytes were taken, wanted {}", errno.1));
            }
            Err(error) if error.raw_os_error() == Some(errno.0) => {}
            Err(error) => return Err(format!("'{what}' to {name}: {error}, wanted {}", errno.1)),
        }
        let errors = self.text("errors")?;
        let wanted = format!(" path={name} errno={} why=", errno.1);
        let told =
            errors.lines().last().is_some_and(|line| line.contains(&wanted) && !line.ends_with("why="));
        ensure!(told, "'{what}' to {name}: the last line of errors is not '...{wanted}...': {errors}");
        Ok(())
    }

    /// Up to `len` bytes of `mem`, in one read.
    pub(crate) fn mem(&self, gpa: u64, len: usize) -> Result<Vec<u8>, String> {
        read_at(self.mailbox.bytes(), gpa, len).map_err(|error| format!("read mem at {gpa:#x}: {error}"))
    }

    pub(crate) fn word(&self, gpa: u64) -> Result<u64, String> {
        self.mailbox.word(gpa).map_err(|error| error.to_string())
    }

    pub(crate) fn header(&self, offset: u64) -> Result<u64, String> {
        self.mailbox.header(offset).map_err(|error| error.to_string())
    }

    pub(crate) fn map(&self) -> Result<Vec<Region>, String> {
        map::parse(&self.text("mem.map")?)
    }

    /// All registers of a vCPU at one instant.
    pub(crate) fn regs(&self, vcpu: u64) -> Result<Regs, String> {
        Regs::parse_all(&self.text(&format!("vcpu/{vcpu}/regs/all"))?)
    }

    /// One register that is a number.
    pub(crate) fn reg(&self, vcpu: u64, name: &str) -> Result<u64, String> {
        Regs::parse_one(name, &self.text(&format!("vcpu/{vcpu}/regs/{name}"))?)?.get(name)
    }

    /// Whether a register's file is there.
    pub(crate) fn has(&self, vcpu: u64, register: &str) -> bool {
        self.path(&format!("vcpu/{vcpu}/regs/{register}")).exists()
    }

    /// Whether a register's file may be written.
    pub(crate) fn writable(&self, vcpu: u64, register: &str) -> bool {
        let file = fs::metadata(self.path(&format!("vcpu/{vcpu}/regs/{register}")));
        file.is_ok_and(|file| file.permissions().mode() & 0o222 != 0)
    }

    pub(crate) fn set(&self, vcpu: u64, setting: &str) -> Checked {
        self.write(&format!("vcpu/{vcpu}/regs/all"), &format!("{setting}\n"))
    }

    pub(crate) fn step(&self, vcpu: u64, count: u64) -> Checked {
        self.write(&format!("vcpu/{vcpu}/ctl"), &format!("step {count}\n"))
    }

    /// Waits until something holds.
    pub(crate) fn until(&self, what: &str, mut holds: impl FnMut() -> Result<bool, String>) -> Checked {
        let begun = Instant::now();
        while !holds()? {
            ensure!(begun.elapsed() < self.patience, "not in {:?}: {what}", self.patience);
            sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Pauses the VM until the value is dropped.
    pub(crate) fn pause(&self) -> Result<Paused<'_>, String> {
        self.write("ctl", "pause\n")?;
        Ok(Paused(self))
    }
}

/// Up to `len` bytes of a file, in one read.
pub(crate) fn read_at(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0xee; len];
    let got = file.read_at(&mut bytes, offset)?;
    bytes.truncate(got);
    Ok(bytes)
}

/// Our pause; dropping it lets the VM go on, also when a check fails.
pub(crate) struct Paused<'a>(&'a Vm);

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        // What fails here is found by the next check, which needs a running VM.
        let _ = self.0.write("ctl", "resume\n");
    }
}
