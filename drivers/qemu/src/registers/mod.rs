//! Registers through the gdbstub and the monitor, while the VM stands still; some of a running vCPU through KVM.

mod check;
mod costs;
mod held;
mod shared;
mod snapshot;
mod table;
mod write;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vmtree_api::{
    Cancel, Error, ErrorKind, Missing, Msrs, Pace, RegId, RegOffer, RegValue, RegisterSet, Registers, Result,
    VcpuId,
};

use crate::agent::Holds;
use crate::control::{Control, Stopped};
use crate::gdb::door::{self, Door};
use crate::kvm::Vcpus;
use crate::qmp::Qmp;
use crate::runstate::Status;
use costs::Costs;
use shared::Readers;

/// How often an open gdbstub is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// How many instructions are executed before the VM's state is looked at again. Each makes QEMU send two events.
const STEPS: u64 = 64;

/// How often a snapshot is tried while others let the VM run in the middle of it.
const TRIES: u32 = 10;

/// The registers of a VM.
pub struct Access {
    inner: Arc<Inner>,
    /// Started at the first use of the gdbstub.
    caretaker: Mutex<Option<Caretaker>>,
    /// The vCPUs that are held, where there is an agent.
    holds: Option<Arc<Holds>>,
}

/// The thread that closes the gdbstub.
struct Caretaker {
    /// Told at each use; dropped, the thread ends.
    used: Sender<()>,
    thread: JoinHandle<()>,
}

struct Inner {
    control: Arc<Control>,
    /// Locked only by those who have the control's lock.
    door: Mutex<Door>,
    readers: Readers,
    offers: Vec<RegOffer>,
    /// The quicker way to some of a running vCPU's, where KVM runs it. Locked only by those who have the control's lock.
    vcpus: Option<Mutex<Vcpus>>,
    costs: Costs,
    /// Whether the gdbstub can be ours: else the monitor alone is asked.
    with_gdb: bool,
}

/// Whether the gdbstub is free for us, or somebody uses it for a debugger of his own.
///
/// # Errors
/// Those of [`Qmp::execute`].
pub fn can_have_gdb(qmp: &Qmp) -> Result<bool> {
    Ok(door::taken(qmp)?.is_none_or(|taken| taken.is_left_over()))
}

impl Access {
    /// The registers of the QEMU `pid` that is under `control`; `with_gdb` is what [`can_have_gdb`] says, `kvm` whether KVM
    /// runs its vCPUs. Nothing is opened yet.
    #[must_use]
    pub fn new(control: Arc<Control>, pid: u32, with_gdb: bool, kvm: bool) -> Self {
        let offers = table::offers(with_gdb);
        let door = Mutex::new(Door::new(pid, control.debts()));
        let vcpus = kvm.then(|| Mutex::new(Vcpus::new(pid)));
        let (readers, costs) = (Readers::default(), Costs::default());
        let inner = Arc::new(Inner { control, door, readers, offers, vcpus, costs, with_gdb });
        Self { inner, caretaker: Mutex::default(), holds: None }
    }

    /// The same with an agent, which has the registers of vCPUs that it holds.
    #[must_use]
    pub fn with(mut self, holds: Option<Arc<Holds>>) -> Self {
        self.holds = holds;
        self
    }

    /// Executes up to `count` instructions on `vcpu` while the others stand still, and returns how many it executed.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] unless the VM is paused or if somebody else uses the gdbstub, [`ErrorKind::NotFound`] for a
    /// vCPU that is not there. The VM is paused then.
    pub fn step(&self, vcpu: VcpuId, count: u64, cancel: &Cancel) -> Result<u64> {
        if let Some(holds) = &self.holds {
            holds.refuse("step")?;
        }
        let mut done = 0;
        while done < count && !cancel.raised() {
            let batch = STEPS.min(count - done);
            let stepped = self.inner.step(vcpu, batch, cancel);
            self.tell();
            match stepped {
                Ok(some) => {
                    done += some;
                    if some < batch {
                        break;
                    }
                }
                // Somebody else let it run meanwhile: what was done, was done.
                Err(error) if error.kind() == ErrorKind::Busy && done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Tells the caretaker that the gdbstub was used.
    fn tell(&self) {
        let mut caretaker = self.caretaker.lock();
        if caretaker.is_none() {
            let (used, uses) = channel();
            let inner = Arc::clone(&self.inner);
            let spawned =
                thread::Builder::new().name("qemu-gdb".to_owned()).spawn(move || inner.take_care(&uses));
            match spawned {
                Ok(thread) => *caretaker = Some(Caretaker { used, thread }),
                Err(error) => log::warn!("QEMU's gdbstub stays open until the end: {error}"),
            }
        }
        if let Some(caretaker) = &*caretaker {
            // It ends only after us.
            let _ = caretaker.used.send(());
        }
    }
}

impl Inner {
    fn lead(&self) -> Result<()> {
        if !self.with_gdb {
            self.spare_the_debugger()?;
        }
        let begun = Instant::now();
        let was_running = self.control.while_stopped(|stopped| {
            self.readers.begin().answer(|vcpu| self.snapshot(stopped, vcpu));
            Ok(stopped.was_running())
        })?;
        if was_running {
            self.costs.add(begun.elapsed());
        }
        Ok(())
    }

    /// The registers that KVM shares, of a vCPU that runs and goes on running.
    fn quick(&self, vcpu: VcpuId) -> Option<RegisterSet> {
        let vcpus = self.vcpus.as_ref()?;
        // Nobody stops or steps it meanwhile.
        let mut session = self.control.lock();
        if session.holds_still() || session.link.check_alive().is_err() {
            return None;
        }
        let regs = vcpus.lock().read(vcpu, || session.settle().ok())?;
        Some(RegisterSet::X86_64(Box::new(regs)))
    }

    /// # Errors
    /// [`ErrorKind::Busy`] where a stop would be seen by somebody's debugger.
    fn spare_the_debugger(&self) -> Result<()> {
        let mut session = self.control.lock();
        let qmp = session.settle()?;
        match door::taken(&qmp)? {
            Some(taken) if taken.attached && session.status()? == Status::Running => {
                let why = "a debugger is connected to QEMU's gdbstub and would see the stop that this takes; \
                           stop the VM by it, or end it";
                Err(Error::new(ErrorKind::Busy, "read registers", why))
            }
            _ => Ok(()),
        }
    }

    fn snapshot(&self, stopped: &mut Stopped<'_>, vcpu: VcpuId) -> Result<RegisterSet> {
        self.stopped(stopped, |door, qmp| snapshot::take(self.with_gdb.then_some(door), qmp, vcpu))
    }

    /// Does `f` with the gdbstub, again where somebody let the VM run in the middle of it.
    fn stopped<T>(
        &self,
        stopped: &mut Stopped<'_>,
        mut f: impl FnMut(&mut Door, &Qmp) -> Result<T>,
    ) -> Result<T> {
        let mut tries = 1;
        loop {
            let mut door = self.door.lock();
            let result = f(&mut door, stopped.qmp());
            door.close_if_broken(stopped.qmp());
            let broke_in = door.take_broke_in();
            drop(door);
            let failed = result.is_err();
            let resumed = if failed || broke_in { stopped.renew(broke_in)? } else { false };
            match result {
                Err(error) if again(&error, resumed) && tries < TRIES => log::debug!("once more: {error}"),
                result => return result,
            }
            tries += 1;
        }
    }

    fn step(&self, vcpu: VcpuId, count: u64, cancel: &Cancel) -> Result<u64> {
        const OP: &str = "step";
        if !self.with_gdb {
            return Err(Error::new(ErrorKind::Busy, OP, "QEMU's gdbstub was somebody else's at the mount"));
        }
        let running = || Error::new(ErrorKind::Busy, OP, "pause first");
        {
            let mut session = self.control.lock();
            session.settle()?;
            if session.status()? == Status::Running {
                return Err(running());
            }
        }
        self.control.while_stopped(|stopped| {
            if stopped.was_running() {
                return Err(running());
            }
            stopped.stepping(|qmp| {
                let mut door = self.door.lock();
                let result = door.stub(qmp).and_then(|stub| stub.step(vcpu.0, count, cancel));
                if result.is_err() {
                    // A stop that the gdbstub hears of ends its stepping; without it the vCPU would step on for good.
                    qmp.execute("stop", serde_json::Value::Null)?;
                }
                door.close_if_broken(qmp);
                result
            })
        })
    }

    /// Closes the gdbstub when nobody has used it for a while.
    fn take_care(&self, uses: &Receiver<()>) {
        let mut open = false;
        loop {
            let told = match open {
                true => uses.recv_timeout(LOOK),
                false => uses.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match told {
                Ok(()) => open = true,
                Err(RecvTimeoutError::Timeout) => open = self.look(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Returns whether the gdbstub is still open.
    fn look(&self) -> bool {
        // Whoever has the lock uses it.
        let Some(mut session) = self.control.try_lock() else { return true };
        let vcpus_open = self.vcpus.as_ref().is_some_and(|vcpus| {
            let mut vcpus = vcpus.lock();
            vcpus.close_if_idle();
            vcpus.is_open()
        });
        let mut door = self.door.lock();
        if door.is_idle() {
            match session.settle() {
                Ok(qmp) => door.close(&qmp),
                Err(error) if error.kind() == ErrorKind::Gone => door.forget(),
                Err(error) => log::debug!("the gdbstub can't be closed yet: {error}"),
            }
        }
        door.is_open() || vcpus_open
    }
}

/// Whether an error is one of being disturbed: `resumed` says whether somebody let the VM run.
fn again(error: &Error, resumed: bool) -> bool {
    resumed && matches!(error.kind(), ErrorKind::Busy | ErrorKind::TimedOut | ErrorKind::Gone)
}

impl Drop for Access {
    fn drop(&mut self) {
        if let Some(Caretaker { used, thread }) = self.caretaker.get_mut().take() {
            drop(used);
            let _ = thread.join();
        }
        let mut session = self.inner.control.lock();
        let mut door = self.inner.door.lock();
        if door.is_open() {
            match session.settle() {
                Ok(qmp) => door.close(&qmp),
                // The next mount finds it left over.
                Err(error) => log::debug!("the gdbstub is not closed: {error}"),
            }
        }
    }
}

impl Registers for Access {
    fn offers(&self) -> &[RegOffer] {
        &self.inner.offers
    }

    fn pace(&self) -> Pace {
        Pace::Posted
    }

    fn read(&self, vcpu: VcpuId) -> Result<RegisterSet> {
        if let Some(set) = self.read_held(vcpu, None) {
            return set;
        }
        let set = self.inner.readers.read(vcpu, || self.inner.lead());
        self.tell();
        set
    }

    fn read_some(&self, vcpu: VcpuId, wanted: &[RegId]) -> Result<RegisterSet> {
        if let Some(set) = self.read_held(vcpu, Some(wanted)) {
            return set;
        }
        let shared = wanted.iter().all(|id| table::row(*id).is_some_and(table::Row::is_shared));
        if let Some(set) = shared.then(|| self.inner.quick(vcpu)).flatten() {
            self.tell();
            return Ok(set);
        }
        self.read(vcpu)
    }

    fn cost(&self) -> Option<Duration> {
        self.inner.costs.median()
    }

    fn write(&self, vcpu: VcpuId, changes: &[(RegId, RegValue)]) -> Result<()> {
        let words = write::words(&self.inner.offers, changes)?;
        if words.is_empty() {
            return Ok(());
        }
        if let Some(written) = self.holds.as_ref().and_then(|holds| holds.write(vcpu, changes)) {
            return written;
        }
        let inner = &self.inner;
        let written = inner.control.while_stopped(|stopped| {
            inner.stopped(stopped, |door, qmp| write::transact(door, qmp, vcpu, &words))
        });
        self.tell();
        written
    }

    fn msrs(&self) -> std::result::Result<&dyn Msrs, Missing> {
        let why = "MSRs by index: neither QEMU's gdbstub nor its monitor reads any; EFER and KERNEL_GS_BASE are had as \
                   registers, the bases of FS and GS in fs and gs";
        Err(Missing::new(why))
    }
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
