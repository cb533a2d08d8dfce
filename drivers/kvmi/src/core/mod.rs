//! What lives on the owner thread: the connection, where each vCPU stands, and what is armed.

mod answer;
mod arm;
mod intake;
mod stand;
#[cfg(test)]
mod tests;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use vmtree_api::events::{Event, Wanted};
use vmtree_api::{Error, ErrorKind, MemoryMap, Result, VcpuId, ViewId};

use crate::failure;
use crate::port::{Answer, Control, General, Port, Refusal, Reply, Told};
use crate::queue::Queue;

/// Why a vCPU stands.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Why {
    /// It was paused.
    Pause,
    /// It did the step that it was to do while the VM is paused.
    Stepped,
    /// An event, of this number, waits for its verdict.
    Held(u64),
    /// There is no room for an event that would only be told.
    Full(Event),
}

/// A vCPU that stands.
#[derive(Debug)]
struct Stop {
    told: Told,
    why: Why,
}

/// A step that is under way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stepping {
    /// One of those that are counted; the vCPU stands afterwards.
    Counted,
    /// On another view, and back to this one.
    Back(ViewId),
}

#[derive(Debug, Default)]
struct Vcpu {
    at: Option<Stop>,
    /// The general registers that take effect once it goes on: the hypervisor shows the old ones until then.
    general: Option<General>,
    /// A pause was asked for and not told of yet.
    pausing: bool,
    /// Reasons of its own to stand, beside the VM's pauses.
    stands: u32,
    stepping: Option<Stepping>,
    /// Single-step is on.
    step_on: bool,
    /// What is switched on.
    armed: BTreeSet<Control>,
}

/// What a view shows in the place of a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Shown {
    gfn: u64,
    /// Whether it is a private copy, outside the guest's map.
    copy: bool,
}

/// The view that each vCPU runs on, for those who ask from other threads.
pub type Current = Arc<Mutex<Vec<ViewId>>>;

/// All of it.
pub struct Core {
    port: Box<dyn Port>,
    vcpus: Vec<Vcpu>,
    wanted: Wanted,
    queue: Arc<Queue>,
    map: Arc<MemoryMap>,
    pauses: u64,
    epoch: u64,
    serial: u64,
    views: BTreeMap<u16, BTreeMap<u64, Shown>>,
    current: Current,
    /// The next frame outside the guest's map.
    free_gfn: u64,
    /// Why the connection is gone.
    gone: Option<String>,
    /// Something happened that others may wait for.
    news: bool,
}

impl Core {
    /// Over a connection to a VM with so many vCPUs and this memory.
    pub fn new(port: Box<dyn Port>, vcpus: u32, map: Arc<MemoryMap>, queue: Arc<Queue>) -> Self {
        // Behind whatever the guest may have.
        let free_gfn = (map.ram_end() / vmtree_api::PAGE_SIZE).next_multiple_of(1 << 18);
        Self {
            port,
            vcpus: (0..vcpus).map(|_| Vcpu::default()).collect(),
            wanted: Wanted::default(),
            queue,
            map,
            pauses: 0,
            epoch: 0,
            serial: 0,
            views: BTreeMap::new(),
            current: Arc::new(Mutex::new(vec![ViewId(0); vcpus as usize])),
            free_gfn,
            gone: None,
            news: false,
        }
    }

    /// The connection, for what needs no state.
    pub fn port(&mut self) -> &mut dyn Port {
        &mut *self.port
    }

    /// The views that the vCPUs run on.
    #[must_use]
    pub fn current(&self) -> &Current {
        &self.current
    }

    /// Why the connection is gone.
    #[must_use]
    pub fn gone(&self) -> Option<&str> {
        self.gone.as_deref()
    }

    /// Asks the host something that it always answers; one that does not is gone.
    pub fn ping(&mut self) {
        if let Err(refusal) = self.port.vcpus() {
            self.note_end(&refusal);
        }
    }

    /// Whether something happened since this was asked last.
    pub fn news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// Turns a refusal into an error, and notes the end of the connection.
    ///
    /// # Errors
    /// The refusal.
    pub fn done<T>(&mut self, op: &'static str, answer: Answer<T>) -> Result<T> {
        answer.map_err(|refusal| {
            self.note_end(&refusal);
            failure::error(op, &refusal)
        })
    }

    fn note_end(&mut self, refusal: &Refusal) {
        if let Refusal::Gone(why) = refusal
            && self.gone.is_none()
        {
            self.gone = Some(why.clone());
        }
    }

    /// The connection can't be used any more: the hypervisor lets all go once it is closed.
    fn break_off(&mut self, why: String) {
        self.note_end(&Refusal::Gone(why));
        self.port.close();
    }

    /// The place of a vCPU.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn index(&self, op: &'static str, vcpu: VcpuId) -> Result<usize> {
        let index = vcpu.0 as usize;
        if index < self.vcpus.len() {
            return Ok(index);
        }
        let why = format!("there is no vCPU {vcpu}: the VM has {}", self.vcpus.len());
        Err(Error::new(ErrorKind::NotFound, op, why))
    }

    fn vcpu(&mut self, index: usize) -> Option<&mut Vcpu> {
        self.vcpus.get_mut(index)
    }

    /// Lets a vCPU go on, if it stands.
    fn go(&mut self, index: usize, reply: Reply) -> Result<()> {
        let Some(vcpu) = self.vcpus.get_mut(index) else { return Ok(()) };
        let Some(stop) = vcpu.at.take() else { return Ok(()) };
        vcpu.general = None;
        self.news = true;
        let answer = self.port.reply(&stop.told, reply);
        self.done("let a vCPU go on", answer)
    }

    /// As [`Core::go`], where nobody is there to be told: the connection is gone then, and that is noted.
    fn let_go(&mut self, index: usize, reply: Reply) {
        if let Err(error) = self.go(index, reply) {
            log::debug!("vCPU {index}: {error}");
        }
    }

    /// The general registers that a standing vCPU goes on with.
    #[must_use]
    pub fn pending(&self, index: usize) -> Option<General> {
        self.vcpus.get(index)?.general
    }

    /// Sets the general registers of a vCPU that stands.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn set_general(&mut self, index: usize, general: &General) -> Result<()> {
        let answer = self.port.set_general(index as u16, general);
        self.done("write registers", answer)?;
        if let Some(vcpu) = self.vcpu(index) {
            vcpu.general = Some(*general);
        }
        Ok(())
    }

    /// Undoes all that was done to the VM, and closes the connection.
    pub fn leave(&mut self) {
        self.pauses = 0;
        self.vcpus.iter_mut().for_each(|vcpu| (vcpu.stands, vcpu.stepping) = (0, None));
        if self.gone.is_none() {
            let steps =
                |core: &mut Self| (0..core.vcpus.len()).try_for_each(|index| core.stop_stepping(index));
            let quiet =
                self.watch(&Wanted::default()).and_then(|()| steps(self)).and_then(|()| self.leave_views());
            if let Err(error) = quiet {
                log::debug!("leaving the VM: {error}; the hypervisor undoes the rest");
            }
            (0..self.vcpus.len()).for_each(|index| self.let_go(index, Reply::Continue));
        }
        self.port.close();
    }
}
