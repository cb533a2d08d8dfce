//! One client, from its hello to its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::holds::Order;
use super::{Agent, Refusal, SILENCE};
use crate::frame::Splitter;
use crate::inlet::{Came, Inlet, Reader, TURN};
use crate::{Code, Line, Malformed, ToAgent, ToClient, VERSION, Wanted};

/// Where requests to arm go, in order.
pub(super) type Arming = Sender<(u32, Wanted)>;

/// The time between two beats.
const BEAT: Duration = Duration::from_secs(1);
/// How long a turn to read lasts where nothing comes.
const LOOK: Duration = Duration::from_millis(250);

/// A client's end of the line, read by the session's own thread, or by a vCPU that waits for a verdict.
pub(super) struct Session {
    line: Arc<dyn Line>,
    inlet: Inlet,
    arming: Arming,
    greeted: AtomicBool,
}

/// Tells a peer why it is not served.
pub(super) fn refuse(line: &dyn Line, why: String) {
    let mut bytes = Vec::new();
    ToClient::Refused { why }.encode(&mut bytes);
    // It may be gone already.
    let _ = line.send(&bytes);
    line.close();
}

impl Session {
    pub fn new(line: &Arc<dyn Line>, arming: Arming) -> Self {
        let inlet = Inlet::new(line.clone(), Splitter::default());
        Self { line: line.clone(), inlet, arming, greeted: AtomicBool::new(false) }
    }

    /// Serves a client until its end: its stream is over, it breaks the protocol, or it is silent.
    pub fn run(&self, agent: &Agent) {
        let (mut beat, mut holds) = (Instant::now(), 0);
        loop {
            let held = agent.holds.so_far();
            // Where vCPUs are held again and again, each reads for itself.
            let turn = if holds == held { self.inlet.turn() } else { None };
            holds = held;
            match turn {
                Some(mut reader) => {
                    if !self.read(agent, &mut reader, LOOK) {
                        return;
                    }
                }
                None => std::thread::sleep(TURN),
            }
            if self.inlet.silence() > SILENCE {
                return;
            }
            if self.greeted.load(Ordering::Relaxed) && beat.elapsed() >= BEAT {
                beat = Instant::now();
                agent.outbox.message(&ToClient::Beat);
                agent.outbox.flush();
            }
        }
    }

    /// Does what comes by the line while nobody else reads it. False where it has ended, or somebody else reads.
    pub fn try_read(&self, agent: &Agent, still_wanted: impl FnOnce() -> bool) -> bool {
        match self.inlet.turn() {
            // Who had the turn before may have read what this one waits for.
            Some(mut reader) if still_wanted() => self.read(agent, &mut reader, LOOK),
            Some(_) => true,
            None => false,
        }
    }

    /// A turn of the one that has it. False at the end, which the session's own thread then finds too.
    fn read(&self, agent: &Agent, reader: &mut Reader, timeout: Duration) -> bool {
        match self.inlet.read(reader, timeout, |kind, body| self.take(agent, kind, body)) {
            Came::Some => true,
            Came::End(_) => false,
            Came::Broken(malformed) => {
                refuse(&*self.line, malformed.to_string());
                false
            }
        }
    }

    fn take(&self, agent: &Agent, kind: u16, body: &[u8]) -> Result<(), Malformed> {
        let greeted = self.greeted.load(Ordering::Relaxed);
        match ToAgent::decode(kind, body)? {
            ToAgent::Hello { version: VERSION } if !greeted => {
                agent.outbox.attach(&self.line);
                agent.outbox.message(&ToClient::Hello { version: VERSION, hello: agent.machine.hello() });
                agent.outbox.flush();
                self.greeted.store(true, Ordering::Relaxed);
            }
            ToAgent::Hello { .. } => {
                return Err(Malformed("its version is not that of this agent: use the same vmtree"));
            }
            _ if !greeted => return Err(Malformed("it does not say hello first")),
            message => obey(agent, &self.arming, message),
        }
        Ok(())
    }
}

fn obey(agent: &Agent, arming: &Arming, message: ToAgent) {
    let (id, done) = match message {
        ToAgent::Hello { .. } | ToAgent::Beat => return,
        // It ends only after this session.
        ToAgent::Watch { id, wanted } => return arming.send((id, wanted)).unwrap_or_default(),
        ToAgent::Answer { id, seq, verdict } => (id, answer(agent, seq, verdict)),
        // The vCPU's own thread answers these two.
        ToAgent::Read { id, seq } => match order(agent, seq, Order::Read(id)) {
            Ok(()) => return,
            refused => (id, refused),
        },
        ToAgent::Write { id, seq, registers } => match order(agent, seq, Order::Write(id, registers)) {
            Ok(()) => return,
            refused => (id, refused),
        },
    };
    agent.finish(id, done.map(|()| None));
}

fn stale(seq: u64) -> Refusal {
    Refusal::new(Code::Stale, format!("no event {seq} is held"))
}

fn order(agent: &Agent, seq: u64, order: Order) -> Result<(), Refusal> {
    let (hold, _) = agent.holds.event(seq).ok_or_else(|| stale(seq))?;
    hold.order(order)
}

fn answer(agent: &Agent, seq: u64, verdict: crate::Verdict) -> Result<(), Refusal> {
    let (hold, event) = agent.holds.event(seq).ok_or_else(|| stale(seq))?;
    agent.machine.check(&event, &verdict)?;
    hold.order(Order::Answer(verdict))
}
