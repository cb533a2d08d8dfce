//! A line in memory, and an agent in a machine that does nothing by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, dead_code)]

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vmtree_agent::client::Client;
use vmtree_agent::server::{Agent, Machine, Refusal, Registers};
use vmtree_agent::{Code, Event, Hello, Kind, Line, Reg, Verdict, Wanted, Way};

#[derive(Default)]
struct Pipe {
    bytes: Mutex<(VecDeque<u8>, bool)>,
    changed: Condvar,
}

/// One end of a pair of pipes.
pub struct End {
    to: Arc<Pipe>,
    from: Arc<Pipe>,
}

pub fn pair() -> (Arc<dyn Line>, Arc<dyn Line>) {
    let (one, two) = (Arc::<Pipe>::default(), Arc::<Pipe>::default());
    (Arc::new(End { to: one.clone(), from: two.clone() }), Arc::new(End { to: two, from: one }))
}

impl Line for End {
    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let end = Instant::now() + Duration::from_secs(2);
        let mut state = self.to.bytes.lock().unwrap();
        while state.0.len() > 1 << 16 && !state.1 {
            if Instant::now() > end {
                return Err(io::ErrorKind::TimedOut.into());
            }
            state = self.to.changed.wait_timeout(state, Duration::from_millis(100)).unwrap().0;
        }
        if state.1 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        state.0.extend(bytes);
        self.to.changed.notify_all();
        Ok(())
    }

    fn receive(&self, buf: &mut [u8], timeout: Duration) -> io::Result<usize> {
        let mut state = self.from.bytes.lock().unwrap();
        if state.0.is_empty() && !state.1 {
            state = self.from.changed.wait_timeout(state, timeout).unwrap().0;
        }
        if state.0.is_empty() && !state.1 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = buf.len().min(state.0.len());
        for (place, byte) in buf.iter_mut().zip(state.0.drain(..count)) {
            *place = byte;
        }
        self.from.changed.notify_all();
        Ok(count)
    }

    fn close(&self) {
        for pipe in [&self.to, &self.from] {
            pipe.bytes.lock().unwrap().1 = true;
            pipe.changed.notify_all();
        }
    }
}

/// What is wanted of it, and how many of its vCPUs are held.
#[derive(Default)]
pub struct Still(pub Mutex<Wanted>, AtomicU32);

impl Machine for Still {
    fn hello(&self) -> Hello {
        Hello { name: "still".to_owned(), vcpus: 4, offers: Vec::new() }
    }

    fn arm(&self, wanted: &Wanted) -> Result<(), Refusal> {
        if wanted.watches.iter().any(|watch| watch.kind == Kind::Descriptor) {
            return Err(Refusal::new(Code::Unsupported, "no descriptors here"));
        }
        // As a machine whose vCPUs all have to come by.
        if wanted.watches.iter().any(|watch| watch.kind == Kind::SingleStep) {
            soon("nothing is held", || self.1.load(Ordering::SeqCst) == 0);
        }
        *self.0.lock().unwrap() = wanted.clone();
        Ok(())
    }

    fn holds(&self, _event: &Event) -> bool {
        true
    }

    fn check(&self, _event: &Event, verdict: &Verdict) -> Result<(), Refusal> {
        match verdict {
            Verdict::Deny => Err(Refusal::new(Code::Unsupported, "nothing is denied here")),
            _ => Ok(()),
        }
    }
}

/// Sixteen registers in memory.
#[derive(Default)]
pub struct Regs(pub [u64; 16]);

impl Registers for Regs {
    fn read(&mut self) -> Vec<(Reg, u64)> {
        Reg::ALL.iter().zip(self.0).map(|(reg, value)| (*reg, value)).collect()
    }

    fn write(&mut self, registers: &[(Reg, u64)]) -> Result<(), Refusal> {
        for (reg, value) in registers {
            *self.0.get_mut(*reg as usize).ok_or(Refusal::new(Code::Unsupported, "not that one"))? = *value;
        }
        Ok(())
    }
}

pub struct Scene {
    pub still: Arc<Still>,
    pub agent: Arc<Agent>,
}

impl Scene {
    pub fn new() -> Self {
        let still = Arc::<Still>::default();
        let agent = Agent::new(still.clone());
        let writer = agent.clone();
        thread::spawn(move || writer.write_forever());
        Self { still, agent }
    }

    /// The client's end of a new line that the agent serves.
    pub fn line(&self) -> Arc<dyn Line> {
        let (ours, theirs) = pair();
        let agent = self.agent.clone();
        thread::spawn(move || agent.serve(&theirs));
        ours
    }

    pub fn client(&self) -> Arc<Client> {
        let client = Client::open(self.line()).unwrap();
        read(&client);
        client
    }

    /// A vCPU that is held, as a thread that comes back with the verdict.
    pub fn held(&self, vcpu: u32) -> thread::JoinHandle<Verdict> {
        let (agent, still) = (self.agent.clone(), self.still.clone());
        still.1.fetch_add(1, Ordering::SeqCst);
        thread::spawn(move || {
            let verdict = agent.hold(Event::new(Kind::Cr3, Way::To, vcpu), &mut Regs([7; 16]));
            still.1.fetch_sub(1, Ordering::SeqCst);
            verdict
        })
    }
}

pub fn read(client: &Arc<Client>) {
    let client = client.clone();
    thread::spawn(move || client.read_forever());
}

pub fn soon(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}
