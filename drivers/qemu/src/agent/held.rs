//! The vCPUs that stand still at an event, and their registers.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use vmtree_agent::client::{Client, Failure};
use vmtree_agent::{Code, Event, Kind, Verdict, flag};
use vmtree_api::{Error, ErrorKind, RegId, RegValue, RegisterSet, Result, VcpuId};

use super::{error, gone, regs};

/// Which vCPUs are held. QEMU can't stop the VM while one is: its `stop` waits for the vCPU.
pub struct Holds {
    client: Arc<Client>,
    state: Mutex<State>,
}

/// An event that a vCPU is held at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct At {
    seq: u64,
    /// What the monitor can tell there.
    pub monitor: Monitor,
}

/// What QEMU's monitor can tell of a held vCPU.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Monitor {
    /// All, also the arithmetic flags.
    All,
    /// All but those: QEMU has them in pieces there.
    NoFlags,
    /// Nothing: the vCPU stands there with QEMU's lock, and the monitor waits for it.
    Waits,
}

impl Monitor {
    fn of(event: &Event) -> Self {
        match event.kind {
            Kind::Interrupt => Self::Waits,
            _ if event.flags & flag::FLAGS_LOST != 0 => Self::NoFlags,
            _ => Self::All,
        }
    }
}

#[derive(Default)]
struct State {
    /// Where each vCPU is held.
    held: BTreeMap<u32, At>,
    /// Nobody is held any more: the agent has let go of all.
    ended: bool,
}

impl Holds {
    /// The book of this connection.
    #[must_use]
    pub fn new(client: Arc<Client>) -> Self {
        Self { client, state: Mutex::default() }
    }

    /// A vCPU stands still at an event.
    pub fn add(&self, event: &Event) {
        let mut state = self.state.lock();
        if !state.ended {
            state.held.insert(event.vcpu, At { seq: event.seq, monitor: Monitor::of(event) });
        }
    }

    fn remove(&self, vcpu: u32, seq: u64) {
        let mut state = self.state.lock();
        // It may be held at a later event already.
        if state.held.get(&vcpu).is_some_and(|at| at.seq == seq) {
            state.held.remove(&vcpu);
        }
    }

    /// The connection has ended, so the agent has let go of everything.
    pub fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        state.held.clear();
    }

    /// Whether some vCPU is held.
    #[must_use]
    pub fn any(&self) -> bool {
        !self.state.lock().held.is_empty()
    }

    fn seq(&self, vcpu: VcpuId) -> Option<u64> {
        Some(self.at(vcpu)?.seq)
    }

    /// Where a vCPU is held.
    #[must_use]
    pub fn at(&self, vcpu: VcpuId) -> Option<At> {
        self.state.lock().held.get(&vcpu.0).copied()
    }

    /// Whether the monitor waits for a verdict, whatever it is asked: some vCPU stands with QEMU's lock.
    #[must_use]
    pub fn monitor_waits(&self) -> bool {
        self.state.lock().held.values().any(|at| at.monitor == Monitor::Waits)
    }

    /// Lets a vCPU go.
    ///
    /// # Errors
    /// As [`vmtree_api::events::Held::new`] asks of a reply.
    pub fn answer(&self, vcpu: u32, seq: u64, verdict: &Verdict) -> Result<()> {
        const OP: &str = "answer";
        match self.client.answer(seq, verdict) {
            Ok(()) => self.remove(vcpu, seq),
            // The agent has let it go by itself, or does not listen any more.
            Err(Failure::Gone(why)) => {
                self.remove(vcpu, seq);
                return Err(gone(OP, &why));
            }
            Err(Failure::Refused(refusal)) if refusal.code == Code::Stale => {
                self.remove(vcpu, seq);
                return Err(gone(OP, &refusal.why));
            }
            Err(refused) => return Err(error(OP, refused)),
        }
        Ok(())
    }

    /// The registers that the agent has of a vCPU; `None` for one that is not held.
    ///
    /// # Errors
    /// The agent does not give them.
    pub fn read(&self, vcpu: VcpuId) -> Option<Result<RegisterSet>> {
        let seq = self.seq(vcpu)?;
        match self.client.registers(seq) {
            Ok(values) => Some(regs::set(&values)),
            Err(failure) => self.still_held("read registers", vcpu, seq, failure),
        }
    }

    /// Sets registers of a vCPU; `None` for one that is not held.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for one that the agent can't set, [`ErrorKind::Invalid`]; nothing is changed then.
    pub fn write(&self, vcpu: VcpuId, changes: &[(RegId, RegValue)]) -> Option<Result<()>> {
        let seq = self.seq(vcpu)?;
        let values = match regs::words(changes) {
            Ok(values) => values,
            Err(error) => return Some(Err(error)),
        };
        match self.client.set_registers(seq, &values) {
            Ok(()) => Some(Ok(())),
            Err(failure) => self.still_held("write registers", vcpu, seq, failure),
        }
    }

    /// The error of a vCPU that is held; `None` where it was let go meanwhile.
    fn still_held<T>(&self, op: &'static str, vcpu: VcpuId, seq: u64, failure: Failure) -> Option<Result<T>> {
        let stale = matches!(&failure, Failure::Refused(refusal) if refusal.code == Code::Stale);
        let gone = matches!(failure, Failure::Gone(_));
        (!stale && !gone && self.seq(vcpu) == Some(seq)).then(|| Err(error(op, failure)))
    }

    /// Refuses what the monitor would have to be asked while it waits for a verdict.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`].
    pub fn refuse_waiting(&self, op: &'static str) -> Result<()> {
        if !self.monitor_waits() {
            return Ok(());
        }
        let why = "a vCPU waits at an interrupt, and QEMU's monitor with it, which has to be asked for this; answer the event first";
        Err(Error::new(ErrorKind::Busy, op, why))
    }

    /// Refuses what would have to stop the VM while a vCPU is held.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`].
    pub fn refuse(&self, op: &'static str) -> Result<()> {
        if let Some((vcpu, _)) = self.state.lock().held.first_key_value() {
            return Err(busy(op, *vcpu));
        }
        Ok(())
    }
}

fn busy(op: &'static str, vcpu: u32) -> Error {
    let why = format!(
        "vCPU {vcpu} waits at an event, and QEMU can't stop the VM before that is answered; answer it first"
    );
    Error::new(ErrorKind::Busy, op, why)
}
