//! What goes to the client: put down in order under one lock, written by whoever is free.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::lock::lock;
use crate::{Event, Line, ToClient};

/// A client that is behind by so many bytes is waited for.
const ROOM: usize = 1 << 18;

#[derive(Default)]
struct State {
    line: Option<Arc<dyn Line>>,
    bytes: Vec<u8>,
    /// The number of the last event of this session.
    seq: u64,
}

#[derive(Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    /// There is something to write.
    work: Condvar,
    /// There is room again, or no client.
    room: Condvar,
    /// Held by the one that writes; the buffer that it wrote last.
    writing: Mutex<Vec<u8>>,
}

impl Outbox {
    pub fn attach(&self, line: &Arc<dyn Line>) {
        let mut state = lock(&self.state);
        state.bytes.clear();
        state.seq = 0;
        state.line = Some(line.clone());
    }

    pub fn detach(&self) {
        let mut state = lock(&self.state);
        state.line = None;
        state.bytes.clear();
        self.room.notify_all();
    }

    /// Puts an event down, numbered, to be written soon.
    pub fn event(&self, event: Event) {
        if self.event_then(event, |_| true) {
            self.work.notify_one();
        }
    }

    /// The same, to be written by a flush. False where there is no client; `numbered` sees the event with its number before the client can, and may still say no.
    pub fn event_then(&self, mut event: Event, numbered: impl FnOnce(&Event) -> bool) -> bool {
        let mut state = lock(&self.state);
        while state.line.is_some() && state.bytes.len() > ROOM {
            self.work.notify_one();
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.line.is_none() {
            return false;
        }
        event.seq = state.seq + 1;
        if !numbered(&event) {
            return false;
        }
        state.seq = event.seq;
        ToClient::Event(event).encode(&mut state.bytes);
        true
    }

    /// Puts a message down, whatever the room: each answers one of the client's.
    pub fn message(&self, message: &ToClient) {
        let mut state = lock(&self.state);
        if state.line.is_some() {
            message.encode(&mut state.bytes);
        }
    }

    /// Writes all that is put down.
    pub fn flush(&self) {
        let mut buffer = lock(&self.writing);
        let line = {
            let mut state = lock(&self.state);
            let Some(line) = state.line.clone() else { return };
            std::mem::swap(&mut *buffer, &mut state.bytes);
            self.room.notify_all();
            line
        };
        // The session's own thread sees the line closed, and lets go of everything.
        if !buffer.is_empty() && line.send(&buffer).is_err() {
            line.close();
        }
        buffer.clear();
    }

    pub fn write_forever(&self) {
        loop {
            let mut state = lock(&self.state);
            while state.line.is_none() || state.bytes.is_empty() {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            drop(state);
            self.flush();
            // A flood of events is written in large pieces; who waits for an event alone does not notice.
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}
