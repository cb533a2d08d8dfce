//! A client of the mailbox over any way to the guest's physical memory.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::mailbox::{
    self, Counter, MAILBOX, Op, Site, counter_of, crash, header, slot, slot_of, state, status,
};

/// A way to the guest's physical memory: a mount's `mem`, a driver, or the file behind QEMU's RAM.
pub trait Bytes {
    /// Reads all of `buf` at a gpa.
    ///
    /// # Errors
    /// What the way reports; nothing of `buf` is then sure.
    fn read(&self, gpa: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data` at a gpa.
    ///
    /// # Errors
    /// What the way reports; any part may then be written.
    fn write(&self, gpa: u64, data: &[u8]) -> io::Result<()>;
}

/// A file whose offsets are gpas: a mount's `mem`, or the file behind QEMU's RAM below the hole.
#[cfg(unix)]
impl Bytes for std::fs::File {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buf, gpa)
    }

    fn write(&self, gpa: u64, data: &[u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, data, gpa)
    }
}

/// Why the guest gave no answer.
#[derive(Debug)]
pub enum Error {
    /// The way to the memory failed.
    Io(io::Error),
    /// No answer in time, with what was waited for.
    Timeout(String),
    /// The guest crashed, with its crash record.
    Crashed(String),
    /// The order is none that the guest knows, or one of its arguments is wrong.
    Unknown(Op),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "the guest's memory: {error}"),
            Self::Timeout(what) => write!(f, "the guest gave no sign in time: {what}"),
            Self::Crashed(record) => write!(f, "the guest crashed: {record}"),
            Self::Unknown(op) => write!(f, "the guest refused the order {}: see its arguments", op.name()),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// How an order ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Performed, with the four results.
    Done([u64; 4]),
    /// An exception ended it.
    Faulted {
        /// The vector.
        vector: u64,
        /// The error code, 0 for a vector without one.
        error: u64,
        /// CR2 then: the linear address of a page fault.
        cr2: u64,
        /// RIP of the instruction.
        rip: u64,
    },
    /// The other vCPU did not react in time.
    TimedOut,
}

/// The counters of one vCPU at one moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Counters(BTreeMap<Counter, u64>);

impl Counters {
    /// One counter.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.0.get(&counter).copied().unwrap_or(0)
    }

    /// What was counted since an earlier moment: only what is not 0.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> BTreeMap<Counter, u64> {
        let change = |(&counter, &now): (&Counter, &u64)| (counter, now.wrapping_sub(earlier.get(counter)));
        self.0.iter().map(change).filter(|&(_, change)| change != 0).collect()
    }
}

/// A client of the guest's mailbox.
#[derive(Debug)]
pub struct Mailbox<B> {
    bytes: B,
}

impl<B: Bytes> Mailbox<B> {
    /// A client over `bytes`. Nothing is read yet.
    pub fn new(bytes: B) -> Self {
        Self { bytes }
    }

    /// The way to the memory.
    pub fn bytes(&self) -> &B {
        &self.bytes
    }

    /// The 64-bit word at a gpa.
    ///
    /// # Errors
    /// What the way to the memory reports.
    pub fn word(&self, gpa: u64) -> Result<u64, Error> {
        let mut word = [0; 8];
        self.bytes.read(gpa, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    /// A word of the header, by its offset in [`mailbox::header`].
    ///
    /// # Errors
    /// What the way to the memory reports.
    pub fn header(&self, offset: u64) -> Result<u64, Error> {
        self.word(MAILBOX + offset)
    }

    /// The address of the instruction that performs an order.
    ///
    /// # Errors
    /// What the way to the memory reports.
    pub fn site(&self, site: Site) -> Result<u64, Error> {
        self.word(mailbox::site_of(site))
    }

    /// CR3 of a process of a vCPU.
    ///
    /// # Errors
    /// What the way to the memory reports.
    pub fn process_cr3(&self, vcpu: u64, process: u64) -> Result<u64, Error> {
        self.word(mailbox::process_cr3_of(vcpu, process))
    }

    /// The counters of a vCPU.
    ///
    /// # Errors
    /// What the way to the memory reports.
    pub fn counters(&self, vcpu: u64) -> Result<Counters, Error> {
        let mut block = [0; mailbox::COUNTERS_SIZE as usize];
        self.bytes.read(counter_of(vcpu, Counter::Heartbeat), &mut block)?;
        let words =
            block.chunks_exact(8).map(|word| word.iter().rev().fold(0, |sum, &b| sum << 8 | u64::from(b)));
        Ok(Counters(Counter::ALL.iter().copied().zip(words).collect()))
    }

    /// Waits until the guest runs on all its vCPUs.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Crashed`], or what the way to the memory reports.
    pub fn wait_running(&self, timeout: Duration) -> Result<(), Error> {
        self.wait(
            timeout,
            || "the start of all its vCPUs".into(),
            || {
                let magic = self.header(header::MAGIC)? == u64::from_le_bytes(mailbox::MAGIC);
                Ok(magic && self.header(header::STATE)? == state::RUNNING)
            },
        )
    }

    /// Orders `op` from a vCPU and waits for its end. One order at a time for each vCPU.
    ///
    /// # Errors
    /// [`Error::Unknown`] when the guest refuses it; else as [`Mailbox::wait_running`].
    pub fn order(&self, vcpu: u64, op: Op, args: &[u64], timeout: Duration) -> Result<Outcome, Error> {
        let seq = self.post(vcpu, op, args)?;
        self.outcome(vcpu, op, seq, timeout)
    }

    /// Posts an order without waiting, and returns its sequence number.
    ///
    /// # Errors
    /// What the way to the memory reports.
    pub fn post(&self, vcpu: u64, op: Op, args: &[u64]) -> Result<u64, Error> {
        let slot = slot_of(vcpu);
        let seq = self.word(slot + slot::SEQ)?.wrapping_add(1);
        let mut words = [0; 5];
        words[0] = op as u64;
        words[1..].iter_mut().zip(args).for_each(|(word, arg)| *word = *arg);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.bytes.write(slot + slot::OP, &bytes)?;
        self.bytes.write(slot + slot::SEQ, &seq.to_le_bytes())?;
        Ok(seq)
    }

    /// Waits for the end of a posted order.
    ///
    /// # Errors
    /// As [`Mailbox::order`].
    pub fn outcome(&self, vcpu: u64, op: Op, seq: u64, timeout: Duration) -> Result<Outcome, Error> {
        let slot = slot_of(vcpu);
        let what = || format!("order {} for vCPU {vcpu}, number {seq}", op.name());
        self.wait(timeout, what, || Ok(self.word(slot + slot::ACK)? == seq))?;
        let mut results = [0; 4];
        for (n, result) in results.iter_mut().enumerate() {
            *result = self.word(slot + slot::RESULTS + 8 * n as u64)?;
        }
        let [vector, error, cr2, rip] = results;
        match self.word(slot + slot::STATUS)? {
            status::DONE => Ok(Outcome::Done(results)),
            status::FAULTED => Ok(Outcome::Faulted { vector, error, cr2, rip }),
            status::TIMED_OUT => Ok(Outcome::TimedOut),
            _ => Err(Error::Unknown(op)),
        }
    }

    /// Stops (`false`) or starts (`true`) the background traffic of all vCPUs, and waits until it has.
    ///
    /// # Errors
    /// As [`Mailbox::order`].
    pub fn background(&self, on: bool, timeout: Duration) -> Result<(), Error> {
        self.order(0, Op::Background, &[u64::from(on)], timeout).map(|_| ())
    }

    /// The answer to the greeting, up to its NUL.
    ///
    /// # Errors
    /// What the way to the memory reports.
    pub fn reply(&self) -> Result<String, Error> {
        let mut text = [0; mailbox::GREETING_SIZE as usize];
        self.bytes.read(self.header(header::REPLY)?, &mut text)?;
        let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
        Ok(String::from_utf8_lossy(&text[..end]).into_owned())
    }

    fn wait(
        &self,
        timeout: Duration,
        what: impl Fn() -> String,
        done: impl Fn() -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            if done()? {
                return Ok(());
            }
            if self.header(header::STATE)? == state::CRASHED {
                return Err(Error::Crashed(self.crash_record()?));
            }
            if start.elapsed() > timeout {
                return Err(Error::Timeout(what()));
            }
            sleep(Duration::from_millis(1));
        }
    }

    fn crash_record(&self) -> Result<String, Error> {
        let word = |offset| self.header(offset);
        let (vcpu, vector, error) = (word(crash::VCPU)?, word(crash::VECTOR)?, word(crash::ERROR)?);
        let (cr2, rip) = (word(crash::CR2)?, word(crash::RIP)?);
        Ok(format!("vCPU {vcpu}, vector {vector}, error {error:#x}, cr2 {cr2:#x}, rip {rip:#x}"))
    }
}
