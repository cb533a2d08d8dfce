//! The connection to a gdbstub: one request, one answer, each in bounded time.
//!
//! QEMU stops the VM at any byte that comes while it runs. So nothing is ever sent of its own accord: the
//! acknowledgment of an answer travels with the next request, and after a request that was not answered the connection is
//! of no use. The one exception is a request without its answer for a while: the stub is asked what nobody else asks, to
//! tell a slow answer from a lost request.

use std::io::{ErrorKind as Io, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vmtree_api::{Error, ErrorKind, Result};

use super::packet::{Decoder, Item, encode};

const OP: &str = "ask QEMU's gdbstub";

/// How long an answer may take. The VM stands still meanwhile, so QEMU has nothing else to do.
const ANSWER: Duration = Duration::from_secs(1);

/// How long an answer may take before the stub is asked whether it still has the request. Since 8.1 it tells nothing of
/// a stop that is not the answer to a request, so one that stopped the VM is lost without a word, while the guest waits.
const SILENCE: Duration = Duration::from_millis(30);

/// What it is asked then, and how that answer begins.
const PROBE: (&str, &[u8]) = ("qC", b"QC");

/// How long the first answer may take after word of a stop: by our connecting, then it comes at once, or by the request,
/// then it never comes.
const AFTER_STOP: Duration = Duration::from_millis(200);

/// A connection.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
    decoder: Decoder,
    /// A packet has come that is not acknowledged yet.
    owes: bool,
    sound: bool,
    broke_in: bool,
}

impl Wire {
    /// Speaks over `stream`.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, decoder: Decoder::default(), owes: false, sound: true, broke_in: false }
    }

    /// Whether the next request can be made: none was left without its answer.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.sound
    }

    /// Whether a request came to a VM that somebody had let run meanwhile, so that it stopped it and was lost.
    #[must_use]
    pub fn broke_in(&self) -> bool {
        self.broke_in
    }

    /// Sends a request and returns its answer. What came before it is passed over.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if it broke in, [`ErrorKind::TimedOut`], [`ErrorKind::Gone`], [`ErrorKind::Protocol`].
    pub fn ask(&mut self, request: &str) -> Result<Vec<u8>> {
        self.drain()?;
        self.send(request)?;
        let answer = self.answer(false)?;
        self.sound = true;
        Ok(answer)
    }

    /// The same where the stub may still tell that the VM has stopped for our connecting.
    ///
    /// # Errors
    /// As [`Wire::ask`].
    pub fn ask_first(&mut self, request: &str) -> Result<Vec<u8>> {
        self.send(request)?;
        let answer = self.answer(true)?;
        self.sound = true;
        Ok(answer)
    }

    /// Sends a request that lets the VM run.
    ///
    /// # Errors
    /// As [`Wire::ask`]; the VM stands still.
    pub fn resume(&mut self, request: &str) -> Result<()> {
        self.drain()?;
        self.send(request)
    }

    /// Why the VM has stopped after [`Wire::resume`]: the stop reply; `None` if it runs on after `patience`.
    ///
    /// # Errors
    /// As [`Wire::ask`].
    pub fn stopped(&mut self, patience: Duration) -> Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + patience;
        let packet = self.next(deadline)?;
        self.sound |= packet.is_some();
        Ok(packet)
    }

    /// Stops the VM that [`Wire::resume`] let run; [`Wire::stopped`] tells when.
    ///
    /// # Errors
    /// As [`Wire::ask`].
    pub fn interrupt(&mut self) -> Result<()> {
        self.put(&[0x03])
    }

    /// Takes what has come without being asked for, which is word of stops.
    ///
    /// # Errors
    /// As [`Wire::ask`].
    pub fn drain(&mut self) -> Result<()> {
        if !self.sound {
            return Err(Error::new(ErrorKind::Protocol, OP, "an earlier request was not answered"));
        }
        let failed = |error| Error::new(ErrorKind::Io, OP, "a socket can't be set up").caused_by(error);
        self.stream.set_nonblocking(true).map_err(failed)?;
        let drained = loop {
            match self.fill() {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.stream.set_nonblocking(false).map_err(failed)?;
        drained?;
        while let Some(item) = self.decoder.next_item().map_err(broken)? {
            self.owes |= matches!(item, Item::Packet(_));
        }
        Ok(())
    }

    fn send(&mut self, request: &str) -> Result<()> {
        let mut bytes = Vec::new();
        if std::mem::take(&mut self.owes) {
            bytes.push(b'+');
        }
        bytes.extend(encode(request.as_bytes()));
        self.sound = false;
        self.put(&bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.set_write_timeout(Some(ANSWER)).map_err(gone)?;
        self.stream.write_all(bytes).map_err(|error| match error.kind() {
            Io::WouldBlock | Io::TimedOut => late(),
            _ => gone(error),
        })
    }

    fn answer(&mut self, first: bool) -> Result<Vec<u8>> {
        let mut deadline = Instant::now() + ANSWER;
        let busy = || Error::new(ErrorKind::Busy, OP, "somebody let the VM run at the same moment");
        let (mut stopped, mut probes) = (false, 0);
        loop {
            let next = if first { deadline } else { deadline.min(Instant::now() + SILENCE) };
            let Some(packet) = self.next(next)? else {
                if next < deadline {
                    self.put(&encode(PROBE.0.as_bytes()))?;
                    probes += 1;
                    continue;
                }
                self.broke_in = true;
                return Err(if stopped { busy() } else { late() });
            };
            if probes > 0 && packet.starts_with(PROBE.1) {
                self.broke_in = true;
                return Err(late());
            }
            if !is_stop(&packet) {
                self.skip(probes)?;
                return Ok(packet);
            }
            if !first {
                self.broke_in = true;
                return Err(busy());
            }
            stopped = true;
            deadline = deadline.min(Instant::now() + AFTER_STOP);
        }
    }

    /// Takes the answers to probes, which come when that to the request has.
    fn skip(&mut self, probes: u32) -> Result<()> {
        let deadline = Instant::now() + ANSWER;
        for _ in 0..probes {
            match self.next(deadline)? {
                Some(packet) if packet.starts_with(PROBE.1) => {}
                Some(_) => return Err(protocol("answers what was not asked")),
                None => return Err(late()),
            }
        }
        Ok(())
    }

    /// The next packet; `None` at the deadline.
    fn next(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>> {
        loop {
            match self.decoder.next_item().map_err(broken)? {
                Some(Item::Packet(payload)) => {
                    self.owes = true;
                    return Ok(Some(payload));
                }
                Some(Item::Refused) => return Err(protocol("did not understand a packet")),
                None => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left)).map_err(gone)?;
            self.fill()?;
        }
    }

    /// Reads once; false if there was nothing.
    fn fill(&mut self) -> Result<bool> {
        let mut chunk = [0; 8 << 10];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(Error::new(ErrorKind::Gone, OP, "QEMU has closed its gdbstub")),
            Ok(bytes) => {
                self.decoder.push(chunk.get(..bytes).unwrap_or_default());
                Ok(true)
            }
            Err(error) => match error.kind() {
                Io::WouldBlock | Io::TimedOut => Ok(false),
                Io::Interrupted => Ok(true),
                _ => Err(gone(error)),
            },
        }
    }
}

/// Whether a packet tells that the VM has stopped. No answer to what is asked here begins so.
fn is_stop(packet: &[u8]) -> bool {
    matches!(packet.first(), Some(b'T' | b'S'))
}

fn broken(how: super::packet::Broken) -> Error {
    protocol(&how.to_string())
}

/// The stub breaks its protocol.
pub fn protocol(how: &str) -> Error {
    Error::new(ErrorKind::Protocol, OP, format!("the gdbstub {how}"))
}

fn late() -> Error {
    Error::new(ErrorKind::TimedOut, OP, "QEMU's gdbstub did not answer in time")
}

fn gone(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Gone, OP, "QEMU has closed its gdbstub").caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::{self, JoinHandle};

    /// A stub that is silent until it is sent a `qC`, says `answers` then, and "next" to what comes later.
    fn silent(answers: &'static [&'static str]) -> (Wire, JoinHandle<()>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let peer = thread::spawn(move || {
            let mut heard = Vec::new();
            let mut chunk = [0; 64];
            while !heard.ends_with(b"$qC#b4") {
                let bytes = theirs.read(&mut chunk).unwrap();
                heard.extend_from_slice(&chunk[..bytes]);
            }
            answers.iter().for_each(|answer| theirs.write_all(&encode(answer.as_bytes())).unwrap());
            // Until the other end hangs up.
            while theirs.read(&mut chunk).is_ok_and(|bytes| bytes > 0) {
                theirs.write_all(&encode(b"next")).unwrap();
            }
        });
        (Wire::new(ours), peer)
    }

    #[test]
    fn a_request_that_was_lost_is_known_soon() {
        let (mut wire, peer) = silent(&["QCp01.01"]);
        let begun = Instant::now();
        let error = wire.ask("g").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        assert!(begun.elapsed() < ANSWER && wire.broke_in() && !wire.is_sound());
        drop(wire);
        peer.join().unwrap();
    }

    #[test]
    fn an_answer_just_in_time_is_taken_though_those_to_the_probes_come_later() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let peer = thread::spawn(move || {
            let mut chunk = [0; 4096];
            thread::sleep(ANSWER - Duration::from_millis(250));
            theirs.write_all(&encode(b"0011")).unwrap();
            thread::sleep(Duration::from_millis(350));
            let heard = theirs.read(&mut chunk).unwrap();
            let probes = chunk[..heard].windows(6).filter(|word| word == b"$qC#b4").count();
            assert!(probes > 0);
            (0..probes).for_each(|_| theirs.write_all(&encode(b"QCp01.01")).unwrap());
            // Until the other end hangs up.
            while theirs.read(&mut chunk).is_ok_and(|bytes| bytes > 0) {}
        });
        let mut wire = Wire::new(ours);
        assert_eq!(wire.ask("g").unwrap(), b"0011");
        assert!(wire.is_sound() && !wire.broke_in());
        drop(wire);
        peer.join().unwrap();
    }

    #[test]
    fn a_slow_answer_is_taken_and_the_next_request_gets_its_own() {
        let (mut wire, peer) = silent(&["0011", "QCp01.01"]);
        assert_eq!(wire.ask("g").unwrap(), b"0011");
        assert!(!wire.broke_in() && wire.is_sound());
        assert_eq!(wire.ask("g").unwrap(), b"next");
        drop(wire);
        peer.join().unwrap();
    }
}
