//! vmtree's end: arms, takes events, answers them.

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::frame::Splitter;
use crate::inlet::{Came, Inlet, Reader, TURN};
use crate::lock::lock;
use crate::server::{Refusal, SILENCE};
use crate::{Code, Event, Hello, Line, Reg, ToAgent, ToClient, VERSION, Verdict, Wanted};

/// How long an agent has for a hello, and for a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Events that wait to be taken; beside those who wait for something, nobody reads while there are more, so that the guest waits.
const ROOM: usize = 4096;

/// Why a request came to nothing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Failure {
    /// The agent refused it.
    Refused(Refusal),
    /// The agent is gone, and why.
    Gone(String),
}

/// How long a client that is in nobody's turn lets others read.
const REST: Duration = Duration::from_millis(100);

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
    inlet: Inlet,
    writing: Mutex<()>,
    state: Mutex<State>,
    /// Something came, or the agent is gone.
    came: Condvar,
    next_id: AtomicU32,
}

impl Client {
    /// Says hello. Someone must then call [`Client::read_forever`] on a thread.
    ///
    /// # Errors
    /// A sentence: it does not answer, refuses, or is no agent of this version.
    pub fn open(line: Arc<dyn Line>) -> Result<Arc<Self>, String> {
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
        Ok(Arc::new(Self {
            inlet: Inlet::new(line.clone(), splitter),
            line,
            hello,
            writing: Mutex::new(()),
            state: Mutex::default(),
            came: Condvar::new(),
            next_id: AtomicU32::new(1),
        }))
    }

    /// What the agent says of itself.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Beats, and reads what comes while nobody waits for it, until the agent's end. Give it a thread.
    pub fn read_forever(&self) {
        let mut beat = Instant::now();
        while lock(&self.state).gone.is_none() {
            let full = lock(&self.state).events.len() >= ROOM;
            match self.inlet.turn() {
                // Full, the agent is read no further, so that the guest waits.
                Some(mut reader) if !full => self.read(&mut reader, REST),
                _ => {}
            }
            if full {
                self.inlet.not_listened();
            } else if self.inlet.silence() > SILENCE {
                self.end("the agent has been silent for 5 seconds");
            }
            if beat.elapsed() >= Duration::from_secs(1) {
                beat = Instant::now();
                if self.send(&ToAgent::Beat).is_err() {
                    self.end("the agent is gone");
                }
            }
            // Those who wait for something read by themselves.
            let state = lock(&self.state);
            let _ = self.came.wait_timeout_while(state, REST, |state| state.gone.is_none());
        }
        self.line.close();
    }

    /// A turn of the one that has it.
    fn read(&self, reader: &mut Reader, timeout: Duration) {
        let take = |kind, body: &[u8]| ToClient::decode(kind, body).map(|message| self.take(message));
        match self.inlet.read(reader, timeout, take) {
            Came::Some => {}
            Came::End(why) => self.end(&why),
            Came::Broken(malformed) => self.end(&malformed.to_string()),
        }
    }

    fn end(&self, why: &str) {
        lock(&self.state).gone.get_or_insert_with(|| why.to_owned());
        self.came.notify_all();
    }

    fn take(&self, message: ToClient) {
        let mut state = lock(&self.state);
        match message {
            ToClient::Event(event) => state.events.push_back(event),
            ToClient::Done { id, .. } | ToClient::Registers { id, .. } => {
                state.answers.insert(id, message);
            }
            ToClient::Refused { why } => {
                state.gone.get_or_insert(why);
            }
            ToClient::Hello { .. } | ToClient::Beat => return,
        }
        self.came.notify_all();
    }

    /// Waits until `ready` finds what it waits for, and reads where nobody else does.
    fn wait<T>(&self, timeout: Duration, mut ready: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let end = Instant::now() + timeout;
        let mut looked = false;
        loop {
            let turn = self.inlet.turn();
            // After the turn was had or not: who had it before may have read what this waits for.
            let mut state = lock(&self.state);
            if let Some(found) = ready(&mut state) {
                return Some(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            // Who does not wait at all still wants to know what is there.
            if left.is_zero() && looked {
                return None;
            }
            looked = true;
            match turn {
                Some(mut reader) => {
                    drop(state);
                    self.read(&mut reader, left.min(PATIENCE));
                }
                None => drop(self.came.wait_timeout(state, left.min(TURN))),
            }
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
        self.wait(timeout, |state| match state.events.pop_front() {
            Some(event) => Some(Ok(event)),
            None => state.gone.clone().map(Err),
        })
        .transpose()
    }

    fn request(&self, message: impl FnOnce(u32) -> ToAgent) -> Result<ToClient, Failure> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed).max(1);
        self.send(&message(id)).map_err(|error| Failure::Gone(error.to_string()))?;
        let answer = self.wait(PATIENCE, |state| match state.answers.remove(&id) {
            Some(ToClient::Done { code, why, .. }) if code != Code::Ok => {
                Some(Err(Failure::Refused(Refusal::new(code, why))))
            }
            Some(answer) => Some(Ok(answer)),
            None => state.gone.clone().map(|why| Err(Failure::Gone(why))),
        });
        let late = || Refusal::new(Code::TimedOut, "the agent gave no answer in 10 seconds");
        answer.unwrap_or_else(|| Err(Failure::Refused(late())))
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
        match line.receive(&mut buf, Duration::from_millis(500)) {
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
