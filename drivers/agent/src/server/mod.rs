//! The agent's end: tells events, holds vCPUs, takes orders from one client at a time.

mod holds;
mod outbox;
mod session;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use crate::lock::lock;
use crate::{Code, Event, Hello, Line, Reg, ToClient, Verdict, Wanted, flag};
use holds::Holds;
use outbox::Outbox;
use session::Session;

pub use holds::Registers;

/// A client that says nothing for so long counts as gone. It beats once a second.
pub const SILENCE: Duration = Duration::from_secs(5);

/// Why a request was not done, for the peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// Which sort of reason.
    pub code: Code,
    /// The reason in words.
    pub why: String,
}

impl Refusal {
    /// A refusal of this sort with its reason.
    pub fn new(code: Code, why: impl Into<String>) -> Self {
        Self { code, why: why.into() }
    }
}

/// The monitor that the agent sits in.
pub trait Machine: Send + Sync {
    /// What it is and what can be had of it.
    fn hello(&self) -> Hello;

    /// Replaces all that is wanted. Nothing is wanted of an agent without a client. May take seconds.
    ///
    /// # Errors
    /// What is wanted is as it was.
    fn arm(&self, wanted: &Wanted) -> Result<(), Refusal>;

    /// Whether the client still wants to hold this event. Prompt.
    fn holds(&self, event: &Event) -> bool;

    /// Whether this held event can be given this verdict. Prompt.
    ///
    /// # Errors
    /// It can't; the event stays held.
    fn check(&self, event: &Event, verdict: &Verdict) -> Result<(), Refusal>;
}

/// An agent.
pub struct Agent {
    machine: Arc<dyn Machine>,
    outbox: Outbox,
    holds: Holds,
    /// One session at a time.
    serving: AtomicBool,
    session: Mutex<Option<Arc<Session>>>,
}

impl Agent {
    /// An agent of this machine, with no client.
    #[must_use]
    pub fn new(machine: Arc<dyn Machine>) -> Arc<Self> {
        Arc::new(Self {
            machine,
            outbox: Outbox::default(),
            holds: Holds::default(),
            serving: AtomicBool::new(false),
            session: Mutex::default(),
        })
    }

    /// Writes what [`Agent::tell`] has put down. Never comes back: give it a thread.
    pub fn write_forever(&self) {
        self.outbox.write_forever();
    }

    /// Serves one client until it is gone; then nothing is held or wanted. A second one at a time is told so.
    pub fn serve(&self, line: &Arc<dyn Line>) {
        if self.serving.swap(true, Ordering::AcqRel) {
            let why = "the agent has a client already: only one at a time".to_owned();
            session::refuse(&**line, why);
            return;
        }
        thread::scope(|scope| {
            let (arming, orders) = mpsc::channel();
            // On a thread of its own: what is held is answered meanwhile, and the machine may have to wait for that.
            let arms = move || {
                for (id, wanted) in orders {
                    self.finish(id, self.machine.arm(&wanted).map(|()| None));
                }
            };
            match thread::Builder::new().name("vmtree-arms".to_owned()).spawn_scoped(scope, arms) {
                Ok(_) => {
                    let session = Arc::new(Session::new(line, arming));
                    *lock(&self.session) = Some(session.clone());
                    session.run(self);
                }
                Err(error) => session::refuse(&**line, format!("the monitor can't start a thread: {error}")),
            }
            line.close();
            // With it goes the way to the thread that arms, which so comes to its end.
            lock(&self.session).take();
            self.outbox.detach();
            self.holds.release();
        });
        // What can't be disarmed now has no client to tell it to, and is told to no one.
        let _ = self.machine.arm(&Wanted::default());
        self.serving.store(false, Ordering::Release);
    }

    /// Tells of an event and goes on. Waits only where the client is behind by more than the outbox holds.
    pub fn tell(&self, mut event: Event) {
        event.flags &= !flag::HELD;
        self.outbox.event(event);
    }

    /// Tells of an event and waits for its verdict on this thread, the vCPU's own, which meanwhile serves `registers` to
    /// the client. Without a client it continues at once.
    pub fn hold(&self, mut event: Event, registers: &mut dyn Registers) -> Verdict {
        event.flags |= flag::HELD;
        let hold = self.holds.open(event.vcpu);
        // Asked under the outbox's lock: what is told of an arming comes by it too, and no event that is held follows the word
        // that nothing is held any more.
        let told = self.outbox.event_then(event, |event| {
            let wanted = self.machine.holds(event);
            if wanted {
                self.holds.number(&hold, event);
            }
            wanted
        });
        if !told {
            self.holds.close(&hold);
            return Verdict::Continue;
        }
        self.outbox.flush();
        let session = lock(&self.session).clone();
        let read = |still_wanted: &dyn Fn() -> bool| {
            session.as_ref().is_some_and(|session| session.try_read(self, still_wanted))
        };
        let verdict = hold.wait(registers, |id, done| self.finish(id, done), read);
        drop(session);
        self.holds.close(&hold);
        verdict
    }

    /// Answers a request; 0 is none.
    fn finish(&self, id: u32, done: Result<Option<Vec<(Reg, u64)>>, Refusal>) {
        if id == 0 {
            return;
        }
        let message = match done {
            Ok(Some(registers)) => ToClient::Registers { id, registers },
            Ok(None) => ToClient::Done { id, code: Code::Ok, why: String::new() },
            Err(Refusal { code, why }) => ToClient::Done { id, code, why },
        };
        self.outbox.message(&message);
        self.outbox.flush();
    }
}
