//! A client of QEMU's machine protocol: one command, one answer, each in bounded time and space.
//!
//! A QMP server serves one client at a time. So a connection is made, asked and dropped, to let others in. While it
//! is open, events are set aside in the order in which they come.

use std::io::{ErrorKind as Io, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use vmtree_api::{Error, ErrorKind, Result};

use crate::dial::{dial, held};
use crate::said::said;
use crate::sys;

pub const OP: &str = "ask QEMU";

/// The longest line that is read, in bytes. `info mtree -f` of a large machine is below one MiB.
const LINE_LIMIT: usize = 16 << 20;

/// How long a server may take to greet; one that serves another client does not greet at all.
pub const GREETING: Duration = Duration::from_secs(3);

/// How many events are kept for one who does not take them.
const EVENT_LIMIT: usize = 4096;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// How often one that waits for an answer looks whether it still wants it.
const SLICE: Duration = Duration::from_millis(10);

/// A connection past its greeting.
pub struct Qmp {
    path: PathBuf,
    lines: Mutex<Lines>,
}

impl Qmp {
    /// Connects to the socket at `path`, reads the greeting and leaves the negotiation behind.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if nobody listens there, [`ErrorKind::Denied`], [`ErrorKind::Busy`] if the server
    /// does not greet, [`ErrorKind::Protocol`] if it is no QMP server.
    pub fn connect(path: &Path) -> Result<Self> {
        Self::over(dial(path)?, path)
    }

    /// The same over a stream that is connected to `path`.
    ///
    /// # Errors
    /// As [`Qmp::connect`].
    pub fn over(stream: UnixStream, path: &Path) -> Result<Self> {
        let mut lines = Lines { stream, pending: Vec::new(), serial: 0, events: Vec::new() };
        greet(path, &mut lines)?;
        let qmp = Self { path: path.to_owned(), lines: Mutex::new(lines) };
        qmp.execute("qmp_capabilities", Value::Null)?;
        Ok(qmp)
    }

    /// Ends the connection for all who share it.
    pub fn hang_up(&self) {
        // Fails only where the server has hung up already.
        let _ = self.lines.lock().stream.shutdown(std::net::Shutdown::Both);
    }

    /// The socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The process that listens at the socket, where it can be seen.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the system does not tell.
    pub fn peer(&self) -> Result<Option<u32>> {
        sys::peer_pid(&self.lines.lock().stream)
            .map_err(|error| Error::new(ErrorKind::Io, OP, "the socket's peer is unknown").caused_by(error))
    }

    /// Executes `command` and returns what it returned. Events that come before the answer are set aside. What QEMU
    /// did before it answered has sent its events before the answer.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if QEMU does not know the command, [`ErrorKind::Invalid`] if it refuses it,
    /// [`ErrorKind::TimedOut`], [`ErrorKind::Gone`] if it hung up, [`ErrorKind::Protocol`].
    pub fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        self.execute_unless(command, arguments, || false)?.ok_or_else(late)
    }

    /// The same, but `None` where no answer has come and `give_up` says not to wait for it. QEMU does the command all the
    /// same, before those that follow; its late answer is passed over.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn execute_unless(
        &self,
        command: &str,
        arguments: Value,
        give_up: impl Fn() -> bool,
    ) -> Result<Option<Value>> {
        let mut lines = self.lines.lock();
        lines.serial += 1;
        let serial = lines.serial;
        let mut request = json!({ "execute": command, "id": serial });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        lines.send(&request)?;
        let deadline = Instant::now() + ANSWER;
        loop {
            let Some(line) = lines.next_unless(deadline, &give_up)? else { return Ok(None) };
            match Message::parse(&line)? {
                Message::Event(name) => lines.set_aside(name),
                Message::Answer { id, outcome }
                    if id == Some(serial) || (id.is_none() && outcome.is_err()) =>
                {
                    return outcome.map(Some).map_err(|refusal| refusal.into_error(command));
                }
                // The answer to a command that ran out of time before this one.
                Message::Answer { id: Some(id), .. } if id < serial => {}
                Message::Answer { .. } | Message::Greeting => {
                    return Err(broken("answered what was not asked"));
                }
            }
        }
    }

    /// Takes the events that were set aside and those that have come since, without waiting for more.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`] if QEMU hung up, [`ErrorKind::Protocol`]; the events are lost then.
    pub fn events(&self) -> Result<Vec<String>> {
        let mut lines = self.lines.lock();
        while let Some(line) = lines.arrived()? {
            match Message::parse(&line)? {
                Message::Event(name) => lines.set_aside(name),
                Message::Answer { id: Some(id), .. } if id <= lines.serial => {}
                Message::Answer { .. } | Message::Greeting => {
                    return Err(broken("answered what was not asked"));
                }
            }
        }
        match std::mem::take(&mut lines.events) {
            events if events.len() < EVENT_LIMIT => Ok(events),
            _ => Err(broken("sends more events than can be kept")),
        }
    }

    /// Runs a line of the human monitor and returns what it printed.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn human(&self, line: &str) -> Result<String> {
        match self.execute("human-monitor-command", json!({ "command-line": line }))? {
            Value::String(text) => Ok(text),
            _ => Err(broken("returned no text for a monitor command")),
        }
    }
}

fn greet(path: &Path, lines: &mut Lines) -> Result<()> {
    let at = path.display();
    let no_qmp =
        || Error::new(ErrorKind::Protocol, OP, format!("'{at}' is no QMP socket: it does not greet as one"));
    let line = match lines.next(Instant::now() + GREETING) {
        Ok(line) => line,
        Err(error) if error.kind() == ErrorKind::TimedOut && lines.pending.is_empty() => {
            return Err(held(path));
        }
        Err(_) => return Err(no_qmp()),
    };
    match Message::parse(&line) {
        Ok(Message::Greeting) => Ok(()),
        _ => Err(no_qmp()),
    }
}

fn broken(how: &str) -> Error {
    Error::new(ErrorKind::Protocol, OP, format!("the QMP server {how}"))
}

/// Lines in both directions.
struct Lines {
    stream: UnixStream,
    /// What is read and not yet taken; holds no whole line except just after a read.
    pending: Vec<u8>,
    serial: u64,
    /// The names of events that nobody has taken yet.
    events: Vec<String>,
}

impl Lines {
    fn send(&mut self, request: &Value) -> Result<()> {
        let sent = self.stream.write_all(format!("{request}\n").as_bytes());
        sent.map_err(|error| match error.kind() {
            Io::WouldBlock | Io::TimedOut => {
                Error::new(ErrorKind::TimedOut, OP, "QEMU does not read its QMP socket")
            }
            _ => Error::new(ErrorKind::Gone, OP, "QEMU has closed its QMP socket").caused_by(error),
        })
    }

    /// The next line, without its end.
    fn next(&mut self, deadline: Instant) -> Result<Vec<u8>> {
        self.next_unless(deadline, &|| false)?.ok_or_else(late)
    }

    /// The same; `None` where `give_up` says that it is not to be waited for.
    fn next_unless(&mut self, deadline: Instant, give_up: &dyn Fn() -> bool) -> Result<Option<Vec<u8>>> {
        let mut seen = 0;
        loop {
            if let Some(line) = self.whole_line(seen)? {
                return Ok(Some(line));
            }
            seen = self.pending.len();
            match self.fill(deadline.min(Instant::now() + SLICE)) {
                Err(error) if error.kind() == ErrorKind::TimedOut && Instant::now() < deadline => {
                    if give_up() {
                        return Ok(None);
                    }
                }
                filled => filled?,
            }
        }
    }

    /// The next line that has come already.
    fn arrived(&mut self) -> Result<Option<Vec<u8>>> {
        let mut seen = 0;
        loop {
            if let Some(line) = self.whole_line(seen)? {
                return Ok(Some(line));
            }
            seen = self.pending.len();
            self.stream.set_nonblocking(true).map_err(unreadable)?;
            let filled = self.read();
            self.stream.set_nonblocking(false).map_err(unreadable)?;
            match filled {
                Err(error) if error.kind() == ErrorKind::TimedOut => return Ok(None),
                other => other?,
            }
        }
    }

    /// Takes the first line out of what is pending, of which `seen` bytes are known to hold no end of a line.
    fn whole_line(&mut self, seen: usize) -> Result<Option<Vec<u8>>> {
        if let Some(end) = self.pending.iter().skip(seen).position(|byte| *byte == b'\n') {
            let rest = self.pending.split_off(seen + end + 1);
            return Ok(Some(std::mem::replace(&mut self.pending, rest)));
        }
        if self.pending.len() > LINE_LIMIT {
            return Err(broken("sends a line without an end"));
        }
        Ok(None)
    }

    fn fill(&mut self, deadline: Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        self.stream.set_read_timeout(Some(left)).map_err(unreadable)?;
        self.read()
    }

    fn set_aside(&mut self, event: String) {
        log::debug!("QEMU's event {event}");
        if self.events.len() < EVENT_LIMIT {
            self.events.push(event);
        }
    }

    /// One read(2) into what is pending.
    fn read(&mut self) -> Result<()> {
        let mut chunk = [0; 16 << 10];
        match self.stream.read(&mut chunk) {
            Ok(0) if self.pending.is_empty() => {
                Err(Error::new(ErrorKind::Gone, OP, "QEMU has closed its QMP socket"))
            }
            Ok(0) => Err(broken("hung up in the middle of a line")),
            Ok(bytes) => {
                self.pending.extend(chunk.iter().take(bytes));
                Ok(())
            }
            Err(error) => match error.kind() {
                Io::WouldBlock | Io::TimedOut => Err(late()),
                Io::Interrupted => Ok(()),
                Io::ConnectionReset => Err(Error::new(ErrorKind::Gone, OP, "QEMU has closed its QMP socket")),
                _ => Err(unreadable(error)),
            },
        }
    }
}

fn late() -> Error {
    Error::new(ErrorKind::TimedOut, OP, "QEMU did not answer in time")
}

fn unreadable(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, OP, "can't read from QEMU").caused_by(error)
}

/// A line of the server.
#[derive(Debug)]
enum Message {
    Greeting,
    Event(String),
    Answer { id: Option<u64>, outcome: std::result::Result<Value, Refusal> },
}

/// An error as the server words it.
#[derive(Debug)]
struct Refusal {
    class: String,
    text: String,
}

impl Message {
    fn parse(line: &[u8]) -> Result<Self> {
        let Ok(Value::Object(mut fields)) = serde_json::from_slice(line) else {
            return Err(broken("sends what is no JSON object"));
        };
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or("unnamed").to_owned();
        if fields.get("QMP").is_some_and(Value::is_object) {
            return Ok(Self::Greeting);
        }
        if let Some(event) = fields.get("event") {
            return Ok(Self::Event(text(Some(event))));
        }
        let id = fields.get("id").and_then(Value::as_u64);
        if let Some(value) = fields.remove("return") {
            return Ok(Self::Answer { id, outcome: Ok(value) });
        }
        let Some(error) = fields.get("error") else {
            return Err(broken("sends neither an answer nor an event"));
        };
        let refusal = Refusal { class: text(error.get("class")), text: text(error.get("desc")) };
        Ok(Self::Answer { id, outcome: Err(refusal) })
    }
}

impl Refusal {
    fn into_error(self, command: &str) -> Error {
        let kind = match self.class.as_str() {
            "CommandNotFound" => ErrorKind::Unsupported,
            "DeviceNotFound" => ErrorKind::NotFound,
            _ => ErrorKind::Invalid,
        };
        Error::new(kind, OP, format!("QEMU refuses {command}: {}", said(&self.text)))
    }
}

#[cfg(test)]
#[path = "qmp_tests.rs"]
mod tests;
