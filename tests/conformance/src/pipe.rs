//! An open event file. Nothing here waits longer than the suite's patience.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::Checked;
use crate::event::Record;
use crate::vm::Vm;

/// How long to look for records that should not come: the way of a record from the vCPU to the file takes much less.
const SETTLED: Duration = Duration::from_millis(60);
/// How long to read where records never end.
const LONGEST: Duration = Duration::from_secs(1);
/// O_NONBLOCK of x86-64 Linux (include/uapi/asm-generic/fcntl.h).
const NONBLOCK: i32 = 0o4000;

/// How an event file writes its records.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Format {
    Text,
    Json,
    Binary,
}

/// An open event file.
pub struct Pipe {
    name: String,
    file: File,
    format: Format,
    patience: Duration,
    ready: VecDeque<Record>,
}

impl Vm {
    /// Opens an event file to watch.
    pub(crate) fn watch(&self, name: &str) -> Result<Pipe, String> {
        Pipe::open(self, name, false).map_err(|error| format!("open {name} to read: {error}"))
    }

    /// Opens an event file to decide: events that match hold their vCPU.
    pub(crate) fn control(&self, name: &str) -> Result<Pipe, String> {
        self.try_control(name).map_err(|error| format!("open {name} to read and write: {error}"))
    }

    /// The same, where it may be refused. Releases of a file that was just closed may be under way.
    pub(crate) fn try_control(&self, name: &str) -> io::Result<Pipe> {
        Pipe::open(self, name, true)
    }
}

impl Pipe {
    fn open(vm: &Vm, name: &str, write: bool) -> io::Result<Self> {
        let path = vm.path(name);
        let file = OpenOptions::new().read(true).write(write).custom_flags(NONBLOCK).open(path)?;
        let format = match () {
            () if name.contains("format=json") => Format::Json,
            () if name.contains("format=binary") => Format::Binary,
            () => Format::Text,
        };
        let name = name.to_owned();
        Ok(Self { name, file, format, patience: vm.patience, ready: VecDeque::new() })
    }

    /// Whether there is something to read before the time is over.
    pub fn wait(&self, time: Duration) -> Result<bool, String> {
        let mut polled = [PollFd::new(&self.file, PollFlags::IN)];
        let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
        let ready = poll(&mut polled, Some(&time)).map_err(|error| format!("poll {}: {error}", self.name))?;
        Ok(ready > 0)
    }

    /// One read of up to `len` bytes, which does not wait.
    pub fn read(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let got = self.file.read(&mut bytes)?;
        bytes.truncate(got);
        Ok(bytes)
    }

    /// Reads records until there is one, or the time is over.
    fn fill(&mut self, time: Duration) -> Checked {
        let begun = Instant::now();
        while self.ready.is_empty() {
            let left = time.saturating_sub(begun.elapsed());
            if !self.wait(left)? {
                return Ok(());
            }
            match self.read(64 << 10) {
                Ok(bytes) if bytes.is_empty() => return Err(format!("{} ended", self.name)),
                Ok(bytes) => self.ready.extend(self.records(&bytes)?),
                // Another look: poll may tell of a record that was filtered out since.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(format!("read {}: {error}", self.name)),
            }
        }
        Ok(())
    }

    fn records(&self, bytes: &[u8]) -> Result<Vec<Record>, String> {
        if self.format == Format::Binary {
            return crate::binary::records(bytes);
        }
        let text = std::str::from_utf8(bytes).map_err(|error| format!("{}: {error}", self.name))?;
        let text = text
            .strip_suffix('\n')
            .ok_or_else(|| format!("{}: a read ends inside a record: {text}", self.name))?;
        let parse = if self.format == Format::Json { Record::of_json } else { Record::of_text };
        text.split('\n').map(|line| parse(line).map_err(|why| format!("{}: {why}", self.name))).collect()
    }

    /// The next record.
    pub fn next(&mut self) -> Result<Record, String> {
        self.fill(self.patience)?;
        self.ready.pop_front().ok_or_else(|| format!("{}: no record in {:?}", self.name, self.patience))
    }

    /// All records up to the first that is looked for.
    pub fn until(&mut self, wanted: impl Fn(&Record) -> Result<bool, String>) -> Result<Vec<Record>, String> {
        let (mut records, begun) = (Vec::new(), Instant::now());
        loop {
            let record = self.next()?;
            let found = wanted(&record)?;
            records.push(record);
            if found {
                return Ok(records);
            }
            ensure!(begun.elapsed() < self.patience, "{}: none of {} in time", self.name, records.len());
        }
    }

    /// So many records, and no more than they.
    pub fn exactly(&mut self, count: usize) -> Result<Vec<Record>, String> {
        let records = (0..count).map(|_| self.next()).collect::<Result<Vec<_>, _>>()?;
        self.nothing()?;
        Ok(records)
    }

    /// No more records.
    pub fn nothing(&mut self) -> Checked {
        self.nothing_for(SETTLED)
    }

    /// No record is there now: others had the time to come.
    pub fn nothing_yet(&mut self) -> Checked {
        self.nothing_for(Duration::ZERO)
    }

    fn nothing_for(&mut self, time: Duration) -> Checked {
        self.fill(time)?;
        match self.ready.pop_front() {
            None => Ok(()),
            Some(record) => Err(format!("{}: a record too many: {record:?}", self.name)),
        }
    }

    /// All records that come until none has come for a while. Where the guest's ticks raise some for ever, those of a
    /// second: what was ordered before is among them.
    pub fn rest(&mut self) -> Result<Vec<Record>, String> {
        let (mut all, begun) = (Vec::new(), Instant::now());
        loop {
            self.fill(SETTLED)?;
            if self.ready.is_empty() || begun.elapsed() > LONGEST {
                return Ok(all);
            }
            all.extend(self.ready.drain(..));
        }
    }

    /// The next record, whose vCPU is held.
    pub fn held(&mut self) -> Result<Record, String> {
        let record = self.next()?;
        same!(record.get("held")?, 1, "{}: held= of a record of a controlling file: {record:?}", self.name);
        Ok(record)
    }

    /// Writes a line to it.
    pub fn try_answer(&mut self, line: &str) -> io::Result<()> {
        self.file.write_all(format!("{line}\n").as_bytes())
    }

    /// Answers a held event.
    pub fn answer(&mut self, record: &Record, action: &str) -> Checked {
        let line = format!("{} {action}", record.seq()?);
        self.try_answer(&line).map_err(|error| format!("'{line}' to {}: {error}", self.name))
    }

    /// An answer that must be refused with this errno.
    pub fn refuses(&mut self, line: &str, errno: (i32, &str)) -> Checked {
        match self.try_answer(line) {
            Ok(()) => Err(format!("'{line}' to {} was taken, wanted {}", self.name, errno.1)),
            Err(error) if error.raw_os_error() == Some(errno.0) => Ok(()),
            Err(error) => Err(format!("'{line}' to {}: {error}, wanted {}", self.name, errno.1)),
        }
    }
}
