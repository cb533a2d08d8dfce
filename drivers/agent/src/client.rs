//! vmtree's end: arms, takes events, answers them.

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::frame::Splitter;
use crate::server::{Refusal, SILENCE, lock};
use crate::{Code, Event, Hello, Line, Reg, ToAgent, ToClient, VERSION, Verdict, Wanted};

/// How long an agent has for a hello, and for a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Events that wait to be taken; the agent is read no further while there are more, so that the guest waits.
const ROOM: usize = 4096;

/// Why a request came to nothing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Failure {
    /// The agent refused it.
    Refused(Refusal),
    /// The agent is gone, and why.
    Gone(String),
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    answers: HashMap<u32, ToClient>,
    gone: Option<String>,
}

/// A connection to an agent. Dropped, it ends, and the agent lets go of everything.
pub struct Client {
    line: Arc<dyn Line>,
    hello: Hello,
    writing: Mutex<()>,
    state: Mutex<State>,
    /// An event came, or the agent is gone.
    event: Condvar,
    /// An answer came, or the agent is gone.
    answer: Condvar,
    /// An event was taken.
    room: Condvar,
    next_id: AtomicU32,
}

impl Client {
    /// Says hello. Someone must then call [`Client::read_forever`] on a thread.
    ///
    /// # Errors
    /// A sentence: it does not answer, refuses, or is no agent of this version.
    pub fn open(line: Arc<dyn Line>) -> Result<(Arc<Self>, Splitter), String> {
        let mut bytes = Vec::new();
        ToAgent::Hello { version: VERSION }.encode(&mut bytes);
        // One that refuses does so without reading: its reason is still to be had.
        let sent = line.send(&bytes);
        let mut splitter = Splitter::default();
        let hello = match greeting(&*line, &mut splitter) {
            Ok(hello) => hello,
            Err(why) => {
                line.close();
                return Err(match sent {
                    Err(error) if why.is_empty() => error.to_string(),
                    _ => why,
                });
            }
        };
        let client = Self {
            line,
            hello,
            writing: Mutex::new(()),
            state: Mutex::default(),
            event: Condvar::new(),
            answer: Condvar::new(),
            room: Condvar::new(),
            next_id: AtomicU32::new(1),
        };
        Ok((Arc::new(client), splitter))
    }

    /// What the agent says of itself.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Reads what the agent sends until its end, and beats. Give it a thread, and what [`Client::open`] read too much.
    pub fn read_forever(&self, mut splitter: Splitter) {
        let why = self.read(&mut splitter);
        let mut state = lock(&self.state);
        state.gone.get_or_insert(why);
        self.event.notify_all();
        self.answer.notify_all();
        drop(state);
        self.line.close();
    }

    fn read(&self, splitter: &mut Splitter) -> String {
        let mut buf = vec![0; 1 << 16];
        let (mut heard, mut beat) = (Instant::now(), Instant::now());
        loop {
            loop {
                match splitter
                    .frame()
                    .and_then(|frame| frame.map(|(kind, body)| ToClient::decode(kind, body)).transpose())
                {
                    Ok(None) => break,
                    Ok(Some(message)) => self.take(message),
                    Err(malformed) => return malformed.to_string(),
                }
            }
            match self.line.receive(&mut buf) {
                Ok(0) => return "the agent is gone".to_owned(),
                Ok(count) => {
                    heard = Instant::now();
                    splitter.add(buf.get(..count).unwrap_or_default());
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    _ => return error.to_string(),
                },
            }
            if heard.elapsed() > SILENCE {
                return "the agent has been silent for 5 seconds".to_owned();
            }
            if beat.elapsed() >= Duration::from_secs(1) {
                beat = Instant::now();
                if self.send(&ToAgent::Beat).is_err() {
                    return "the agent is gone".to_owned();
                }
            }
        }
    }

    fn take(&self, message: ToClient) {
        let mut state = lock(&self.state);
        match message {
            ToClient::Event(event) => {
                while state.events.len() >= ROOM && state.gone.is_none() {
                    // The beat goes on while someone is slow to take events.
                    let (next, waited) = self
                        .room
                        .wait_timeout(state, Duration::from_secs(1))
                        .unwrap_or_else(PoisonError::into_inner);
                    state = next;
                    if waited.timed_out() && self.send(&ToAgent::Beat).is_err() {
                        return;
                    }
                }
                state.events.push_back(event);
                self.event.notify_one();
            }
            ToClient::Done { id, .. } | ToClient::Registers { id, .. } => {
                state.answers.insert(id, message);
                self.answer.notify_all();
            }
            ToClient::Refused { why } => {
                state.gone.get_or_insert(why);
            }
            ToClient::Hello { .. } | ToClient::Beat => {}
        }
    }

    fn send(&self, message: &ToAgent) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        let _writing = lock(&self.writing);
        self.line.send(&bytes)
    }

    /// The next event, `None` when `timeout` is over.
    ///
    /// # Errors
    /// The agent is gone, and why.
    pub fn next(&self, timeout: Duration) -> Result<Option<Event>, String> {
        let end = Instant::now() + timeout;
        let mut state = lock(&self.state);
        loop {
            if let Some(event) = state.events.pop_front() {
                self.room.notify_one();
                return Ok(Some(event));
            }
            if let Some(why) = &state.gone {
                return Err(why.clone());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            state = self.event.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn request(&self, message: impl FnOnce(u32) -> ToAgent) -> Result<ToClient, Failure> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed).max(1);
        self.send(&message(id)).map_err(|error| Failure::Gone(error.to_string()))?;
        let end = Instant::now() + PATIENCE;
        let mut state = lock(&self.state);
        loop {
            match state.answers.remove(&id) {
                None => {}
                Some(ToClient::Done { code, why, .. }) if code != Code::Ok => {
                    return Err(Failure::Refused(Refusal::new(code, why)));
                }
                Some(answer) => return Ok(answer),
            }
            if let Some(why) = &state.gone {
                return Err(Failure::Gone(why.clone()));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failure::Refused(Refusal::new(
                    Code::TimedOut,
                    "the agent gave no answer in 10 seconds",
                )));
            }
            state = self.answer.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Replaces all that is wanted.
    ///
    /// # Errors
    /// What is wanted is as it was, or the agent is gone.
    pub fn watch(&self, wanted: &Wanted) -> Result<(), Failure> {
        self.request(|id| ToAgent::Watch { id, wanted: wanted.clone() }).map(|_| ())
    }

    /// Answers a held event. [`Verdict::Continue`] is sent and not waited for.
    ///
    /// # Errors
    /// The event is held as before, or the agent is gone.
    pub fn answer(&self, seq: u64, verdict: &Verdict) -> Result<(), Failure> {
        if *verdict == Verdict::Continue {
            let message = ToAgent::Answer { id: 0, seq, verdict: Verdict::Continue };
            return self.send(&message).map_err(|error| Failure::Gone(error.to_string()));
        }
        self.request(|id| ToAgent::Answer { id, seq, verdict: verdict.clone() }).map(|_| ())
    }

    /// The registers of the vCPU that this held event is on.
    ///
    /// # Errors
    /// The event is not held, or the agent is gone.
    pub fn registers(&self, seq: u64) -> Result<Vec<(Reg, u64)>, Failure> {
        match self.request(|id| ToAgent::Read { id, seq })? {
            ToClient::Registers { registers, .. } => Ok(registers),
            _ => Err(Failure::Refused(Refusal::new(
                Code::Invalid,
                "the agent gave another answer than registers",
            ))),
        }
    }

    /// Sets registers of the vCPU that this held event is on.
    ///
    /// # Errors
    /// None is set, or the agent is gone.
    pub fn set_registers(&self, seq: u64, registers: &[(Reg, u64)]) -> Result<(), Failure> {
        self.request(|id| ToAgent::Write { id, seq, registers: registers.to_vec() }).map(|_| ())
    }

    /// Ends the connection; [`Client::read_forever`] comes back.
    pub fn close(&self) {
        self.line.close();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.line.close();
    }
}

fn greeting(line: &dyn Line, splitter: &mut Splitter) -> Result<Hello, String> {
    let end = Instant::now() + PATIENCE;
    let mut buf = vec![0; 1 << 16];
    while Instant::now() < end {
        match line.receive(&mut buf) {
            Ok(0) => return Err("it ended without a hello".to_owned()),
            Ok(count) => splitter.add(buf.get(..count).unwrap_or_default()),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => continue,
                _ => return Err(error.to_string()),
            },
        }
        let Some((kind, body)) = splitter.frame().map_err(|malformed| malformed.to_string())? else {
            continue;
        };
        return match ToClient::decode(kind, body).map_err(|malformed| malformed.to_string())? {
            ToClient::Hello { version: VERSION, hello } => Ok(hello),
            ToClient::Hello { version, .. } => Err(format!(
                "the agent has version {version} of the protocol and vmtree has {VERSION}: use the same vmtree for both"
            )),
            ToClient::Refused { why } => Err(why),
            _ => Err("it says no hello first".to_owned()),
        };
    }
    Err("it gave no hello in 10 seconds".to_owned())
}
