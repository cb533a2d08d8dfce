//! The state of one connection: what is armed, and where each vCPU stands.

use std::collections::{BTreeMap, VecDeque};

use vmtree_api::events::{Held, Inject};
use vmtree_api::{Driver, Pause, RegId, RegValue};

use crate::armed::{self, Permissions};
use crate::put_off::PutOff;

/// What a vCPU waits for the answer to.
#[derive(Debug)]
pub enum Stop {
    /// A pause.
    Pause,
    /// An event of the machine.
    Event(Held),
}

/// A stop that was told of.
#[derive(Debug)]
pub struct At {
    /// The number of its message.
    pub seq: u32,
    /// Its kind, as the protocol has it.
    pub kind: u8,
    /// What it is.
    pub stop: Stop,
}

/// A vCPU.
#[derive(Debug, Default)]
pub struct Vcpu {
    /// What is armed on it.
    pub armed: armed::Vcpu,
    /// What it waits for.
    pub at: Option<At>,
    /// Pauses that were asked for and are still to be told of.
    pub pauses: u32,
    /// Events that came while it waited already.
    pub waiting: VecDeque<Held>,
    /// Registers that take effect once its event is answered.
    pub registers: Vec<(RegId, RegValue)>,
    /// An exception that is delivered once its event is answered.
    pub injected: Option<Inject>,
    /// Interrupts that wait for the end of single-step.
    pub put_off: PutOff,
}

/// A frame outside the guest's map.
#[derive(Debug)]
pub struct Frame {
    /// What it holds, as long as no view shows it.
    pub bytes: Vec<u8>,
    /// The view and frame that show it: it is a private copy there.
    pub shown: Option<(u32, u64)>,
}

/// All of it.
#[derive(Debug, Default)]
pub struct State {
    /// The vCPUs.
    pub vcpus: Vec<Vcpu>,
    /// Permissions by view.
    pub permissions: Permissions,
    /// Frames that were allocated, by number.
    pub frames: BTreeMap<u64, Frame>,
    /// The machine stands while any vCPU is paused: it can't let a single one run.
    pub pause: Option<Pause>,
    /// Views that were made.
    pub views: Vec<u32>,
    /// The number of the last event.
    pub seq: u32,
    /// Whether commands are answered.
    pub silent: bool,
}

impl State {
    /// Nothing armed on so many vCPUs.
    #[must_use]
    pub fn new(vcpus: u32) -> Self {
        Self { vcpus: (0..vcpus).map(|_| Vcpu::default()).collect(), ..Self::default() }
    }

    /// Tells the machine what is armed now.
    ///
    /// # Errors
    /// As [`vmtree_api::events::EventSource::watch`].
    pub fn arm(&self, driver: &dyn Driver) -> vmtree_api::Result<()> {
        let wanted = armed::wanted(self.vcpus.iter().map(|vcpu| &vcpu.armed), &self.permissions);
        driver.events().map_or(Ok(()), |events| events.watch(&wanted))
    }

    /// Whether any vCPU stands for a pause.
    #[must_use]
    pub fn paused(&self) -> bool {
        self.vcpus
            .iter()
            .any(|vcpu| matches!(&vcpu.at, Some(At { stop: Stop::Pause, .. })) || vcpu.pauses > 0)
    }

    /// Undoes all that this connection did, as KVM does when the introspector goes: held vCPUs go on, nothing is armed, no view
    /// is left.
    pub fn undo(&mut self, driver: &dyn Driver) {
        if let Ok(views) = driver.views() {
            // One that can't be undone belongs to a machine that is gone.
            let _ = views.switch(None, vmtree_api::ViewId(0));
            for view in self.views.drain(..) {
                let _ = views.destroy(vmtree_api::ViewId(view));
            }
        }
        let vcpus = u32::try_from(self.vcpus.len()).unwrap_or(0);
        let mut old = std::mem::replace(self, Self::new(vcpus));
        let _ = self.arm(driver);
        let put_off: Vec<_> = old.vcpus.iter_mut().map(|vcpu| std::mem::take(&mut vcpu.put_off)).collect();
        // Dropped, each event continues and the pause ends.
        drop(old);
        put_off.into_iter().zip(0..).for_each(|(mut put_off, vcpu)| put_off.deliver_all(driver, vcpu));
    }
}
