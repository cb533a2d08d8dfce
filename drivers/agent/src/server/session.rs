//! One client, from its hello to its end.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::holds::Order;
use super::{Agent, Refusal, SILENCE};
use crate::frame::Splitter;
use crate::{Code, Line, Malformed, ToAgent, ToClient, VERSION, Wanted};

/// Where requests to arm go, in order.
pub(super) type Arming = Sender<(u32, Wanted)>;

/// The time between two beats.
const BEAT: Duration = Duration::from_secs(1);

/// Tells a peer why it is not served.
pub(super) fn refuse(line: &dyn Line, why: String) {
    let mut bytes = Vec::new();
    ToClient::Refused { why }.encode(&mut bytes);
    // It may be gone already.
    let _ = line.send(&bytes);
    line.close();
}

/// Serves a client until its end: its stream is over, it breaks the protocol, or it is silent.
pub(super) fn run(agent: &Agent, line: &Arc<dyn Line>, arming: &Arming) {
    let mut splitter = Splitter::default();
    let mut buf = vec![0; 1 << 16];
    let (mut heard, mut beat, mut greeted) = (Instant::now(), Instant::now(), false);
    loop {
        match line.receive(&mut buf) {
            Ok(0) => return,
            Ok(count) => {
                heard = Instant::now();
                splitter.add(buf.get(..count).unwrap_or_default());
                if let Err(malformed) = take(agent, line, arming, &mut splitter, &mut greeted) {
                    return refuse(&**line, malformed.to_string());
                }
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                _ => return,
            },
        }
        if heard.elapsed() > SILENCE {
            return;
        }
        if greeted && beat.elapsed() >= BEAT {
            beat = Instant::now();
            agent.outbox.message(&ToClient::Beat);
            agent.outbox.flush();
        }
    }
}

/// Does all that the frames at hand ask for.
fn take(
    agent: &Agent,
    line: &Arc<dyn Line>,
    arming: &Arming,
    splitter: &mut Splitter,
    greeted: &mut bool,
) -> Result<(), Malformed> {
    while let Some((kind, body)) = splitter.frame()? {
        let message = ToAgent::decode(kind, body)?;
        match message {
            ToAgent::Hello { version: VERSION } if !*greeted => {
                agent.outbox.attach(line);
                agent.outbox.message(&ToClient::Hello { version: VERSION, hello: agent.machine.hello() });
                agent.outbox.flush();
                *greeted = true;
            }
            ToAgent::Hello { .. } => {
                return Err(Malformed("its version is not that of this agent: use the same vmtree"));
            }
            _ if !*greeted => return Err(Malformed("it does not say hello first")),
            message => obey(agent, arming, message),
        }
    }
    Ok(())
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
