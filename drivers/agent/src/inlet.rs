//! Reading a line by turns: whoever waits for something to come by it reads, one at a time, so that what comes is at once on
//! the thread that waits for it. To hand it from thread to thread would cost more than to send it.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use crate::frame::Splitter;
use crate::lock::lock;
use crate::{Line, Malformed};

/// How long those wait who are not in turn, before they look whether they can be.
pub(crate) const TURN: Duration = Duration::from_millis(5);

/// The end of a line that something comes by.
pub(crate) struct Inlet {
    line: Arc<dyn Line>,
    reader: Mutex<Reader>,
    heard: Mutex<Instant>,
}

/// Held by the one that reads.
pub(crate) struct Reader {
    splitter: Splitter,
    buf: Vec<u8>,
}

impl Reader {
    /// Hands on the frames at hand, and tells whether there were any.
    fn frames(
        &mut self,
        take: &mut impl FnMut(u16, &[u8]) -> Result<(), Malformed>,
    ) -> Result<bool, Malformed> {
        let mut any = false;
        while let Some((kind, body)) = self.splitter.frame()? {
            take(kind, body)?;
            any = true;
        }
        Ok(any)
    }
}

/// What became of a turn.
pub(crate) enum Came {
    /// Frames may have come, or nothing in the time.
    Some,
    /// The line has ended, and why.
    End(String),
    /// The peer broke the protocol.
    Broken(Malformed),
}

impl Inlet {
    /// Of a line of which `splitter` has the bytes that were read already.
    pub fn new(line: Arc<dyn Line>, splitter: Splitter) -> Self {
        let reader = Reader { splitter, buf: vec![0; 1 << 16] };
        Self { line, reader: Mutex::new(reader), heard: Mutex::new(Instant::now()) }
    }

    /// The right to read, if nobody has it.
    pub fn turn(&self) -> Option<MutexGuard<'_, Reader>> {
        match self.reader.try_lock() {
            Ok(reader) => Some(reader),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Reads once, for as long as `timeout`, and hands each whole frame to `take`.
    pub fn read(
        &self,
        reader: &mut Reader,
        timeout: Duration,
        mut take: impl FnMut(u16, &[u8]) -> Result<(), Malformed>,
    ) -> Came {
        // What was read together with a hello may be what is waited for.
        match reader.frames(&mut take) {
            Ok(false) => {}
            Ok(true) => return Came::Some,
            Err(malformed) => return Came::Broken(malformed),
        }
        match self.line.receive(&mut reader.buf, timeout) {
            Ok(0) => return Came::End("the peer is gone".to_owned()),
            Ok(count) => {
                *lock(&self.heard) = Instant::now();
                reader.splitter.add(reader.buf.get(..count).unwrap_or_default());
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => return Came::Some,
                _ => return Came::End(error.to_string()),
            },
        }
        reader.frames(&mut take).map_or_else(Came::Broken, |_| Came::Some)
    }

    /// Nobody reads for now: that nothing comes says nothing of the peer.
    pub fn not_listened(&self) {
        *lock(&self.heard) = Instant::now();
    }

    /// How long nothing has come.
    pub fn silence(&self) -> Duration {
        lock(&self.heard).elapsed()
    }
}
