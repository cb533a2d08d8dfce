//! What was answered to the events of the current instruction or delivery. An intercepted instruction is stopped before
//! any effect and executed anew with what was granted, so it raises each event once and takes effect once.

use vmtree_api::Gpa;
use vmtree_api::events::{Detail, Event, EventKind, Inject, InterruptType, Way};
use vmtree_api::{VcpuId, ViewId};

use super::interrupt::{Event as Delivery, Origin};
use super::{Cpu, Exception};
use crate::events::queue::Pushed;
use crate::phys::World;

/// What tells one event of an instruction from another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Key {
    /// Of any kind but slat: its way, and the index of a register or vector.
    Kind(EventKind, Way, u32),
    /// Of slat: the exact address, the way, and whether a page walk did it.
    Slat(Gpa, Way, bool),
}

/// What becomes of an event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// It takes place.
    Pass,
    /// It does not.
    Drop,
    /// It takes place with these data.
    Data(u128),
    /// This exception is raised instead.
    Raise(Exception),
}

/// One answer.
#[derive(Clone, Copy, Debug)]
pub struct Grant {
    /// To which event.
    pub key: Key,
    /// What.
    pub answer: Answer,
    /// Where the access leads, for answers with data; found anew at each try.
    pub place: u64,
}

/// What a vCPU goes on with, other than the next instruction.
#[derive(Clone, Copy, Debug, Default)]
pub enum Mid {
    /// Nothing.
    #[default]
    Nothing,
    /// The instruction at RIP, which was stopped: no interrupt comes before it.
    Instruction,
    /// The delivery of an event, and the event in whose delivery that one was raised.
    Delivery(Delivery, Option<Delivery>),
    /// The report of the step that was just completed, for which there was no room.
    Stepped,
}

/// An event that waits for its verdict.
#[derive(Clone, Copy, Debug)]
pub struct Stopped {
    /// Counts the events of this vCPU that were held.
    pub serial: u64,
    /// The event.
    pub event: Event,
    /// Its key.
    pub key: Key,
    /// The bytes of a memory access.
    pub bytes: usize,
    /// What denying raises, where a memory access can't just not take place.
    pub fault: Option<Exception>,
}

/// What an event is about.
pub struct Asked {
    /// Its key.
    pub key: Key,
    /// Its details.
    pub detail: Detail,
    /// The bytes of a memory access.
    pub bytes: usize,
    /// What denying raises.
    pub fault: Option<Exception>,
}

/// The part of a vCPU that interception needs.
#[derive(Debug, Default)]
pub struct Trap {
    /// The view it runs on.
    pub view: u32,
    /// The view it goes back to after this step.
    pub back: Option<u32>,
    /// The event that it is held at.
    pub held: Option<Stopped>,
    /// What it goes on with.
    pub mid: Mid,
    /// The answers so far.
    pub grants: Vec<Grant>,
    /// The exception to raise where an access was stopped.
    pub raise: Option<Exception>,
    /// What was injected and waits.
    pub injected: Option<Inject>,
    /// Whether the queue of events had no room for the last one.
    pub full: bool,
    /// Whether any of the above is set, so that a step has to look.
    pub attention: bool,
    /// Whether an answer is other than [`Answer::Pass`]: no remembered translation may hide it.
    pub careful: bool,
    serial: u64,
}

/// Who asks.
pub struct Asker<'a> {
    /// Its number.
    pub vcpu: usize,
    /// Its registers.
    pub cpu: &'a Cpu,
    /// What lies behind it.
    pub world: &'a World,
}

impl Trap {
    /// The answer for an event, if there is one already.
    fn granted(&mut self, key: Key) -> Option<Result<Answer, Exception>> {
        let grant = self.grants.iter().find(|grant| grant.key == key)?;
        if let Answer::Raise(exception) = grant.answer {
            self.raise = Some(exception);
            return Some(Err(Exception::STOPPED));
        }
        Some(Ok(grant.answer))
    }

    /// What becomes of an event that is watched if `hold` says so, and held if it says that too.
    ///
    /// # Errors
    /// [`Exception::STOPPED`]: the instruction or delivery ends here for now.
    pub fn ask(&mut self, by: &Asker<'_>, asked: Asked, hold: Option<bool>) -> Result<Answer, Exception> {
        if let Some(answer) = self.granted(asked.key) {
            return answer;
        }
        let Some(hold) = hold else { return Ok(Answer::Pass) };
        let key = asked.key;
        if self.tell(by, asked, hold) {
            self.grant(key, Answer::Pass);
            return Ok(Answer::Pass);
        }
        Err(Exception::STOPPED)
    }

    /// Raises an event, and tells whether the vCPU goes on. If not, it is held, or the queue was full.
    pub fn tell(&mut self, by: &Asker<'_>, asked: Asked, hold: bool) -> bool {
        let kind = match asked.key {
            Key::Kind(kind, ..) => kind,
            Key::Slat(..) => EventKind::Slat,
        };
        let regs = &by.cpu.regs;
        let event = Event {
            vcpu: VcpuId(by.vcpu as u32),
            view: ViewId(self.view),
            kind,
            rip: regs.rip,
            cr3: regs.cr3,
            detail: asked.detail,
        };
        self.attention = true;
        let serial = self.serial.wrapping_add(1);
        match by.world.queue.push(event, hold.then_some(serial)) {
            Pushed::Yes => {}
            Pushed::Full => {
                self.full = true;
                return false;
            }
        }
        if hold {
            self.serial = serial;
            let Asked { key, bytes, fault, .. } = asked;
            self.held = Some(Stopped { serial, event, key, bytes, fault });
        }
        !hold
    }

    /// Answers an event of the current instruction.
    pub fn grant(&mut self, key: Key, answer: Answer) {
        self.careful |= answer != Answer::Pass;
        self.attention = true;
        self.grants.push(Grant { key, answer, place: 0 });
    }

    /// Forgets the answers.
    pub fn clear(&mut self) {
        self.grants.clear();
        self.careful = false;
    }

    /// RIP was changed from outside: the instruction or exception at hand is no longer at hand.
    pub fn moved(&mut self, rip: u64) {
        match &mut self.mid {
            Mid::Delivery(event, _) => event.rip = rip,
            Mid::Instruction => {
                self.mid = Mid::Nothing;
                self.clear();
            }
            Mid::Nothing | Mid::Stepped => {}
        }
    }

    /// Sees to it that the next step looks, if there is anything to look at.
    pub fn refresh(&mut self) {
        self.attention = self.held.is_some()
            || !matches!(self.mid, Mid::Nothing)
            || !self.grants.is_empty()
            || self.injected.is_some()
            || self.back.is_some();
    }

    /// Whether it can't go on by itself: it is held, or waits for room in the queue.
    #[must_use]
    pub fn stands(&self) -> bool {
        self.held.is_some() || self.full
    }
}

impl Origin {
    /// Its name in events.
    #[must_use]
    pub fn interrupt_type(self) -> InterruptType {
        match self {
            Self::External => InterruptType::External,
            Self::Nmi => InterruptType::Nmi,
            Self::Exception => InterruptType::HardwareException,
            Self::Software => InterruptType::SoftwareInterrupt,
            Self::Privileged => InterruptType::PrivilegedSoftwareException,
            Self::SoftwareException => InterruptType::SoftwareException,
        }
    }
}
