//! Registers, execution and views of the VM, by jobs for the owner thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vmtree_api::views::{Remap, Views};
use vmtree_api::{
    Cancel, Error, ErrorKind, Execution, Gfn, Gpa, Missing, Msrs, Pace, Pause, RegId, RegOffer, RegValue,
    RegisterSet, Registers, Result, RunState, VcpuId, ViewId,
};

use crate::core::{Core, Current};
use crate::owner::Handle;
use crate::table;

const READ: &str = "read registers";
const WRITE: &str = "write registers";
const STEP: &str = "step";

/// How long vCPUs may take to stand. Those of a VM that QEMU has stopped don't tell of their pause.
const PATIENCE: Duration = Duration::from_secs(3);

fn late(op: &'static str) -> Error {
    let why = "a vCPU did not tell within 3 seconds that it stands; if QEMU has stopped the VM, let it run ('cont')";
    Error::new(ErrorKind::TimedOut, op, why)
}

/// The registers of the VM.
pub struct Access {
    handle: Handle,
    offers: Vec<RegOffer>,
    msrs: Arc<[u32]>,
    xcr0: bool,
    cost: Mutex<Option<Duration>>,
}

impl Access {
    /// With these MSRs and, where the host gives it, XCR0.
    #[must_use]
    pub fn new(handle: Handle, msrs: Vec<u32>, xcr0: bool) -> Self {
        let without: Vec<u32> = table::msrs().filter(|index| !msrs.contains(index)).collect();
        let offers = table::offers(&without, xcr0);
        Self { handle, offers, msrs: msrs.into(), xcr0, cost: Mutex::new(None) }
    }

    /// Sets registers of a vCPU that runs: it stands meanwhile.
    fn write_running(&self, vcpu: VcpuId, changes: Vec<(RegId, RegValue)>) -> Result<()> {
        let index = self.handle.call(WRITE, move |core| {
            let index = core.index(WRITE, vcpu)?;
            core.stand(index).map(|()| index)
        })?;
        let stands = move |core: &mut Core| Ok(core.stands(index).then_some(()));
        let stood = self.handle.wait(WRITE, PATIENCE, stands);
        self.handle.call(WRITE, move |core| {
            let done = match stood {
                Ok(Some(())) => write(core, index, &changes),
                Ok(None) => Err(late(WRITE)),
                Err(error) => Err(error),
            };
            core.unstand(index);
            done
        })
    }
}

/// Sets registers of a vCPU that stands.
fn write(core: &mut Core, index: usize, changes: &[(RegId, RegValue)]) -> Result<()> {
    let before = match core.pending(index) {
        Some(general) => general,
        None => {
            let answer = core.port().registers(index as u16, &[]);
            core.done(WRITE, answer)?.general
        }
    };
    let after = table::changed(&before, changes)?;
    core.may_become(index, &after)?;
    if after == before { Ok(()) } else { core.set_general(index, &after) }
}

fn read(core: &mut Core, vcpu: VcpuId, msrs: &[u32], with_xcr0: bool) -> Result<RegisterSet> {
    let index = core.index(READ, vcpu)?;
    let answer = core.port().registers(index as u16, msrs);
    let mut raw = core.done(READ, answer)?;
    let xcr0 = if with_xcr0 {
        let answer = core.port().xcr0(index as u16);
        core.done(READ, answer)?
    } else {
        0
    };
    if let Some(general) = core.pending(index) {
        raw.general = general;
    }
    Ok(table::set(&raw, xcr0))
}

impl Registers for Access {
    fn offers(&self) -> &[RegOffer] {
        &self.offers
    }

    fn pace(&self) -> Pace {
        Pace::Posted
    }

    fn read(&self, vcpu: VcpuId) -> Result<RegisterSet> {
        let (msrs, xcr0, begun) = (Arc::clone(&self.msrs), self.xcr0, Instant::now());
        let set = self.handle.call(READ, move |core| read(core, vcpu, &msrs, xcr0))?;
        *self.cost.lock() = Some(begun.elapsed());
        Ok(set)
    }

    fn read_some(&self, vcpu: VcpuId, wanted: &[RegId]) -> Result<RegisterSet> {
        let way = |id: &RegId| table::TABLE.iter().find(|(reg, _)| reg.id() == *id).map(|(_, way)| *way);
        let (mut msrs, mut xcr0) = (Vec::new(), false);
        for way in wanted.iter().filter_map(way) {
            match way {
                table::Way::Msr(index) if self.msrs.contains(&index) => msrs.push(index),
                table::Way::Xcr0 => xcr0 = self.xcr0,
                _ => {}
            }
        }
        self.handle.call(READ, move |core| read(core, vcpu, &msrs, xcr0))
    }

    fn cost(&self) -> Option<Duration> {
        *self.cost.lock()
    }

    fn write(&self, vcpu: VcpuId, changes: &[(RegId, RegValue)]) -> Result<()> {
        // What can't be taken at all stops nobody.
        table::changed(&[0; 18], changes)?;
        if changes.is_empty() {
            return self.handle.call(WRITE, move |core| core.index(WRITE, vcpu).map(drop));
        }
        let wanted = changes.to_vec();
        let standing = self.handle.call(WRITE, move |core| {
            let index = core.index(WRITE, vcpu)?;
            if core.stands(index) { write(core, index, &wanted).map(|()| true) } else { Ok(false) }
        })?;
        if standing { Ok(()) } else { self.write_running(vcpu, changes.to_vec()) }
    }

    fn msrs(&self) -> std::result::Result<&dyn Msrs, Missing> {
        Err(Missing::new("KVMI writes no MSRs; those that it reads and vmtree names are in regs"))
    }
}

/// Pause, resume and step.
pub struct Control(pub Handle);

impl Execution for Control {
    fn state(&self) -> Result<RunState> {
        let pauses = self.0.call("read state", |core| Ok(core.pauses()))?;
        Ok(if pauses > 0 { RunState::Paused } else { RunState::Running })
    }

    fn pause(&self) -> Result<Pause> {
        const OP: &str = "pause";
        let epoch = self.0.call(OP, Core::pause)?;
        let handle = self.0.clone();
        let resume = move || {
            handle.call("resume", move |core| {
                core.resume(epoch);
                Ok(())
            })
        };
        // On any way out from here on, it ends.
        let pause = Pause::new(resume);
        match self.0.wait(OP, PATIENCE, |core| Ok(core.all_stand().then_some(())))? {
            Some(()) => Ok(pause),
            None => Err(late(OP)),
        }
    }

    fn force_resume(&self) -> Result<()> {
        self.0.call("resume", |core| {
            core.force_resume();
            Ok(())
        })
    }

    fn step(&self, vcpu: VcpuId, count: u64, cancel: &Cancel) -> Result<u64> {
        let index = self.0.call(STEP, move |core| {
            let index = core.index(STEP, vcpu)?;
            if core.pauses() == 0 {
                return Err(Error::new(ErrorKind::Busy, STEP, "pause first"));
            }
            Ok(index)
        })?;
        let (mut done, mut failed) = (0, None);
        while done < count && !cancel.raised() {
            match self.one(index, cancel) {
                Ok(true) => done += 1,
                Ok(false) => break,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        self.0.call(STEP, move |core| core.end_steps(index))?;
        // One that did not come to an end is asked to stand again.
        let stands = move |core: &mut Core| Ok((core.pauses() == 0 || core.stands(index)).then_some(()));
        self.0.wait(STEP, PATIENCE, stands)?;
        match failed {
            Some(error) if done == 0 => Err(error),
            _ => Ok(done),
        }
    }
}

impl Control {
    /// One instruction; whether it was done, and not given up.
    fn one(&self, index: usize, cancel: &Cancel) -> Result<bool> {
        self.0.call(STEP, move |core| core.step(index))?;
        let done = move |core: &mut Core| {
            // Someone else resumed it meanwhile: what was done, was done.
            let over = core.has_stepped(index) || core.pauses() == 0;
            Ok(over.then(|| core.has_stepped(index)))
        };
        while !cancel.raised() {
            if let Some(stepped) = self.0.wait(STEP, Duration::from_millis(100), done)? {
                return Ok(stepped);
            }
        }
        Ok(false)
    }
}

/// EPT views.
pub struct AllViews {
    handle: Handle,
    current: Current,
}

impl AllViews {
    /// Of this VM.
    #[must_use]
    pub fn new(handle: Handle, current: Current) -> Self {
        Self { handle, current }
    }
}

impl Views for AllViews {
    fn create(&self) -> Result<ViewId> {
        self.handle.call("create view", Core::create_view)
    }

    fn destroy(&self, view: ViewId) -> Result<()> {
        self.handle.call("remove view", move |core| core.destroy_view(view))
    }

    fn remap(&self, view: ViewId, gfn: Gfn, to: Remap) -> Result<()> {
        self.handle.call("remap", move |core| core.remap(view, gfn, to))
    }

    fn switch(&self, vcpu: Option<VcpuId>, view: ViewId) -> Result<()> {
        const OP: &str = "switch view";
        self.handle.call(OP, move |core| {
            let only = vcpu.map(|vcpu| core.index(OP, vcpu)).transpose()?;
            core.switch_view(only, view)
        })
    }

    fn current(&self, vcpu: VcpuId) -> Result<ViewId> {
        self.current
            .lock()
            .get(vcpu.0 as usize)
            .copied()
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "read view", format!("there is no vCPU {vcpu}")))
    }

    fn read(&self, view: ViewId, gpa: Gpa, buf: &mut [u8]) -> Result<usize> {
        const OP: &str = "read view";
        let bytes = buf.len();
        if bytes == 0 {
            return Ok(0);
        }
        let copy = self.handle.call(OP, move |core| {
            let mut copy = vec![0; bytes];
            let at = core.place(OP, view, gpa, bytes)?;
            let answer = core.port().read(at, &mut copy);
            core.done(OP, answer).map(|()| copy)
        })?;
        buf.copy_from_slice(&copy);
        Ok(bytes)
    }

    fn write(&self, view: ViewId, gpa: Gpa, data: &[u8]) -> Result<usize> {
        const OP: &str = "write view";
        let data = data.to_vec();
        self.handle.call(OP, move |core| {
            let at = core.place(OP, view, gpa, data.len())?;
            if data.is_empty() {
                return Ok(0);
            }
            let answer = core.port().write(at, &data);
            core.done(OP, answer).map(|()| data.len())
        })
    }
}
