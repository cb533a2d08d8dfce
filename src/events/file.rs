//! An open event file.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use vmtree_api::events::{EventKind, Verdict};

use super::control::{Controller, Waiting};
use super::filter::{Filter, Format, Mode};
use super::hub::Hub;
use super::record::Item;
use super::show;
use super::stream::{Cursor, Parked};
use super::wake::{Waker, wake};
use crate::error::{FsError, FsResult};
use crate::text::{text_of, verdict};

/// What a read gets.
#[derive(Debug, Eq, PartialEq)]
pub enum Taken {
    /// Records.
    Data(Vec<u8>),
    /// There are none yet.
    Wait,
    /// There will be none any more: the end of file.
    End,
}

/// An open event file. Dropped, it closes.
pub struct EventFile {
    hub: Arc<Hub>,
    filter: Filter,
    format: Format,
    source: Source,
    reader: Mutex<Reader>,
    armed: AtomicBool,
    closed: AtomicBool,
}

/// Where its records come from.
enum Source {
    /// The rings that all observers share.
    Rings(Arc<Parked>),
    /// Its own queue.
    Queue(Arc<Controller>),
}

/// What reads of one open file share.
struct Reader {
    /// Of an observer.
    cursor: Option<Cursor>,
    /// Taken, but not shown yet.
    ahead: VecDeque<Item>,
    /// The end of a record that was longer than a whole read.
    rest: Vec<u8>,
}

/// What a look for more has found.
#[derive(Eq, PartialEq)]
enum More {
    Some,
    NotYet,
    Never,
}

impl EventFile {
    pub(super) fn observe(hub: &Arc<Hub>, filter: Filter, format: Format, kinds: &[EventKind]) -> Self {
        let cursor = hub.stream.lock().open(kinds);
        let parked = Parked::new(filter.clone());
        Self::new(hub, filter, format, Source::Rings(parked), Some(cursor))
    }

    pub(super) fn control(hub: &Arc<Hub>, file: Arc<Controller>, format: Format) -> Self {
        Self::new(hub, file.filter.clone(), format, Source::Queue(file), None)
    }

    fn new(hub: &Arc<Hub>, filter: Filter, format: Format, source: Source, cursor: Option<Cursor>) -> Self {
        Self {
            hub: hub.clone(),
            filter,
            format,
            source,
            reader: Mutex::new(Reader { cursor, ahead: VecDeque::new(), rest: Vec::new() }),
            armed: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }
    }

    pub(super) fn arm(&self) -> FsResult<()> {
        self.hub.arm(&self.filter, self.mode())?;
        self.armed.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// How it is open.
    #[must_use]
    pub fn mode(&self) -> Mode {
        match self.source {
            Source::Rings(_) => Mode::Observe,
            Source::Queue(_) => Mode::Control,
        }
    }

    /// Reads up to `max` bytes. A read ends inside a record only if a whole one is longer than `max`; the next read goes
    /// on there. Prompt.
    pub fn read(&self, max: usize) -> Taken {
        let mut reader = self.reader.lock();
        let reader = &mut *reader;
        let piece = max.min(reader.rest.len());
        let mut out: Vec<u8> = reader.rest.drain(..piece).collect();
        while out.len() < max && reader.rest.is_empty() {
            if reader.ahead.is_empty() {
                match self.look(reader, show::fit(self.format, max - out.len()), None) {
                    More::Some => {}
                    More::NotYet if out.is_empty() => return Taken::Wait,
                    More::Never if out.is_empty() => return Taken::End,
                    More::NotYet | More::Never => break,
                }
            }
            if !self.show(reader, max, &mut out) {
                break;
            }
        }
        Taken::Data(out)
    }

    /// Shows what was taken. Returns whether there is room for more.
    fn show(&self, reader: &mut Reader, max: usize, out: &mut Vec<u8>) -> bool {
        while let Some(item) = reader.ahead.front_mut() {
            if let (Item::Event { record, held }, Source::Queue(_)) = (&mut *item, &self.source) {
                // It may have timed out since.
                *held = *held && self.hub.control.lock().waits(record.seq);
            }
            let start = out.len();
            show::show(self.format, item, &*self.hub.names, out);
            if out.len() > max && start > 0 {
                out.truncate(start);
                return false;
            }
            if let Item::Event { record, .. } = item {
                self.hub.stats.of(record.event.kind).delivered.add(1);
            }
            reader.ahead.pop_front();
            if out.len() > max {
                reader.rest = out.split_off(max);
                return false;
            }
        }
        true
    }

    /// Takes up to `most` records, or keeps who waits.
    fn look(&self, reader: &mut Reader, most: usize, wait: Option<Waker>) -> More {
        if self.closed.load(Ordering::SeqCst) {
            return More::Never;
        }
        let taken = &mut reader.ahead;
        match (&self.source, &mut reader.cursor) {
            (Source::Queue(file), _) => {
                let more = file.queue.take(most, taken, wait);
                if taken.is_empty() && !more { More::Never } else { found(taken) }
            }
            (Source::Rings(parked), Some(cursor)) => loop {
                let mut stream = self.hub.stream.lock();
                let all = stream.take(cursor, &self.filter, most, taken, &self.hub.stats);
                if !taken.is_empty() {
                    return More::Some;
                }
                if !all {
                    continue;
                }
                if stream.ended() {
                    return More::Never;
                }
                if let Some(wait) = wait {
                    stream.park(parked, wait);
                }
                return More::NotYet;
            },
            (Source::Rings(_), None) => More::Never,
        }
    }

    /// Whether a read would not wait. If it would, `wait` is kept in place of the one that an earlier call left, and called
    /// once when it may not any more. Prompt.
    pub fn readable(&self, wait: Option<Waker>) -> bool {
        let mut reader = self.reader.lock();
        let left = !reader.rest.is_empty() || !reader.ahead.is_empty();
        left || self.look(&mut reader, 1, wait) != More::NotYet
    }

    /// Whether no further event will come: the mount ends, or the VM is gone. What is left can still be read.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.closed.load(Ordering::SeqCst) || self.hub.alive().is_err()
    }

    /// Answers held events: a line `SEQ ACTION...` each, checked whole before the first is carried out. Prompt.
    ///
    /// # Errors
    /// As [`EventFile::answer`], and those of [`verdict::parse`].
    pub fn write(&self, data: &[u8]) -> FsResult<()> {
        let names = &self.hub.names;
        let arch = self.hub.driver().facts().arch;
        let answers = verdict::parse(text_of(data)?, arch, &|name| names.find(name))?;
        self.answer(&answers)
    }

    /// Answers held events. All is checked before the first is carried out. Where the driver refuses one, that one and
    /// those behind it stay held, and those before it stand. Prompt.
    ///
    /// # Errors
    /// [`FsError::BadAccess`] for a file that observes, [`vmtree_api::ErrorKind::Gone`] after the end, [`vmtree_api::ErrorKind::Stale`] for a
    /// number that does not wait for this file, [`vmtree_api::ErrorKind::Invalid`] for an answer that the kind does not have,
    /// [`vmtree_api::ErrorKind::OutOfRange`] for too large a value, [`FsError::Missing`] for one that the driver does not have, and
    /// what the driver says.
    pub fn answer(&self, answers: &[(u64, Verdict)]) -> FsResult<()> {
        let Source::Queue(file) = &self.source else {
            let why = "this file only observes; open it for reading and writing to answer";
            return Err(FsError::BadAccess(why.to_owned()));
        };
        self.hub.alive()?;
        let taken = self.hub.control.lock().answered(file.id, answers, self.hub.offers())?;
        let mut refused = None;
        for (waiting, (seq, verdict)) in taken.into_iter().zip(answers) {
            let kind = waiting.kind();
            let back = if refused.is_some() {
                Some(waiting)
            } else {
                match waiting.answer(verdict) {
                    Ok(()) => {
                        self.hub.stats.of(kind).answered.add(1);
                        None
                    }
                    Err(not_taken) => {
                        let (error, back) = *not_taken;
                        refused = Some(error);
                        back
                    }
                }
            };
            self.hold_again(*seq, back);
        }
        refused.map_or(Ok(()), |error| Err(error.into()))
    }

    fn hold_again(&self, seq: u64, back: Option<Waiting>) {
        // Not inside the call: the lock must be free when a vCPU is let go.
        let Some(back) = back else { return };
        let orphan = self.hub.control.lock().hold_again(seq, back);
        if let Some(orphan) = orphan {
            orphan.let_go();
        } else if let Err(error) = self.hub.pump_state().keep_time(&self.hub) {
            // It waits until its file is closed.
            log::warn!("{error}");
        }
    }

    /// Closes it: what it holds is let go at once, then what only it armed is disarmed. Its reads end. Posted: it may wait
    /// for the driver.
    pub fn close(&self) {
        self.let_go();
        if self.armed.swap(false, Ordering::SeqCst) {
            self.hub.disarm(&self.filter, self.mode());
        }
    }

    /// The first half of [`EventFile::close`], which is prompt: what it holds is let go, and its reads end.
    pub fn let_go(&self) {
        if self.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        let mut wakers = Vec::new();
        match &self.source {
            Source::Queue(file) => {
                let waiting = self.hub.control.lock().remove(file);
                waiting.into_iter().for_each(Waiting::let_go);
                file.queue.end(&mut wakers);
                self.hub.released();
            }
            Source::Rings(parked) => {
                let mut reader = self.reader.lock();
                if let Some(cursor) = &mut reader.cursor {
                    self.hub.stream.lock().close(cursor, parked, &mut wakers);
                }
            }
        }
        wake(wakers);
    }
}

impl Drop for EventFile {
    fn drop(&mut self) {
        self.close();
    }
}

fn found(taken: &VecDeque<Item>) -> More {
    if taken.is_empty() { More::NotYet } else { More::Some }
}
