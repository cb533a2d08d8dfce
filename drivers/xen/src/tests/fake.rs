//! A hypervisor that acts like Xen as far as the driver can see, and writes down what it was told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{Error, Result};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::error::number::{EBUSY, EEXIST, EINVAL};
use crate::events::wire::Slot;
use crate::hypervisor::*;
use crate::registers::convert::CPU_BYTES;
use crate::registers::records::{Records, kind, tests::row};

/// The domain's state, seen by the tests.
pub struct State {
    pub alive: bool,
    pub vcpus: u32,
    /// What Xen plays (XEN_X86_EMU_*).
    pub devices: u32,
    pub pauses: i32,
    pub still: Vec<u32>,
    /// What it can raise (XEN_DOMCTL_MONITOR_EVENT_*).
    pub events: u32,
    /// Single vCPUs can be paused; there may be alternate views.
    pub gdbsx: bool,
    pub altp2m: bool,
    pub stepping: BTreeSet<u32>,
    pub ring: bool,
    /// Somebody else has the ring.
    pub busy: bool,
    pub holds_writes: bool,
    pub set: BTreeSet<Intercept>,
    pub requests: VecDeque<Slot>,
    pub responses: Vec<Slot>,
    /// Requests that were taken and wait for an answer.
    pub waiting: usize,
    pub injected: Vec<(u32, Trap)>,
    pub records: Vec<u8>,
    pub views: bool,
    pub made: BTreeSet<u16>,
    /// The rights that each view has on frames by default.
    pub default: BTreeMap<u16, u8>,
    pub on: u16,
    pub access: BTreeMap<(u16, u64), u8>,
    pub shown: BTreeMap<(u16, u64), u64>,
    pub added: BTreeSet<u64>,
    pub max: u64,
    /// Until nothing is armed, there is always one more of this.
    pub flood: Option<Slot>,
    /// How long each vCPU has run; those that are not here are halted.
    pub ran: BTreeMap<u32, u64>,
    /// How many looks at a vCPU find it still on a processor.
    pub stopping: u32,
    /// Who had the ring was killed.
    pub killed: bool,
    /// The contexts of a PV domain's vCPUs; none of others.
    pub contexts: Vec<Vec<u8>>,
    /// The extended state of all its vCPUs.
    pub extended: Vec<u8>,
    /// It is a 32-bit guest.
    pub narrow: bool,
    /// Calls until one fails.
    pub fails_in: Option<u32>,
    /// Calls that undo something, or only ask, fail too.
    pub strict: bool,
    pub rung: bool,
}

/// Shared with the owner thread.
pub struct Shared {
    pub state: Mutex<State>,
    pub changed: Condvar,
}

pub struct Fake(pub Arc<Shared>);

pub fn errno<T>(number: i32) -> Result<T> {
    Err(Error::from_raw_os_error(number))
}

impl Shared {
    pub fn new(vcpus: u32) -> Arc<Self> {
        let mut records = vec![(kind::HEADER, 0, vec![0; 24])];
        for vcpu in 0..vcpus as u16 {
            let mut cpu = vec![0; CPU_BYTES];
            // Paging off, flags as after a reset, an accessed code segment, a busy TSS.
            cpu[648] = 2;
            cpu[656] = 0x31;
            records.push((kind::CPU, vcpu, cpu));
            records.push((kind::LAPIC, vcpu, vec![0; 32]));
            records.push((kind::LAPIC_REGS, vcpu, vec![0xff; 1024]));
        }
        let state = State {
            alive: true,
            vcpus,
            devices: 1,
            pauses: 0,
            still: Vec::new(),
            events: 0x3fff,
            gdbsx: true,
            altp2m: true,
            stepping: BTreeSet::new(),
            ring: false,
            busy: false,
            holds_writes: false,
            set: BTreeSet::new(),
            requests: VecDeque::new(),
            responses: Vec::new(),
            waiting: 0,
            injected: Vec::new(),
            records: row(&records),
            views: false,
            made: BTreeSet::from([0]),
            default: BTreeMap::new(),
            on: 0,
            access: BTreeMap::new(),
            shown: BTreeMap::new(),
            added: BTreeSet::new(),
            max: 0x1000,
            flood: None,
            ran: BTreeMap::new(),
            stopping: 0,
            killed: false,
            contexts: Vec::new(),
            extended: Vec::new(),
            narrow: false,
            fails_in: None,
            strict: false,
            rung: false,
        };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Has Xen ask.
    pub fn ask(&self, slot: Slot) {
        self.state.lock().requests.push_back(slot);
        self.changed.notify_all();
    }

    /// The answers so far, once there are so many.
    pub fn answers(&self, count: usize) -> Vec<Slot> {
        let mut state = self.state.lock();
        for _ in 0..500 {
            if state.responses.len() >= count {
                break;
            }
            let _ = self.changed.wait_for(&mut state, Duration::from_millis(10));
        }
        assert!(state.responses.len() >= count, "{} answers", state.responses.len());
        state.responses.clone()
    }

    /// A number of a vCPU's record of registers.
    pub fn register(&self, vcpu: u32, at: usize) -> u64 {
        let records = Records::parse(self.state.lock().records.clone()).unwrap();
        crate::registers::records::word(records.get(kind::CPU, vcpu).unwrap(), at)
    }

    /// Sets a register of a vCPU's local APIC.
    pub fn set_apic(&self, vcpu: u32, at: usize, value: u32) {
        let mut state = self.state.lock();
        let mut records = Records::parse(state.records.clone()).unwrap();
        let apic = records.get_mut(kind::LAPIC_REGS, vcpu).unwrap();
        apic[at..at + 4].copy_from_slice(&value.to_le_bytes());
        state.records = records.part_all();
    }

    /// Nothing that we did is left.
    pub fn is_clean(&self) {
        let state = self.state.lock();
        assert_eq!((state.pauses, state.ring, state.views), (0, false, false), "pauses, ring, views");
        assert!(state.still.is_empty() && state.stepping.is_empty(), "vCPUs stand or step");
        assert!(state.set.is_empty() && state.added.is_empty(), "{:?} {:?}", state.set, state.added);
        assert!(state.access.values().all(|access| *access == 7) && state.max == 0x1000, "rights, pages");
    }
}

impl Fake {
    pub fn call(&self) -> Result<parking_lot::MutexGuard<'_, State>> {
        let mut state = self.0.state.lock();
        match &mut state.fails_in {
            Some(0) => {
                state.fails_in = None;
                return errno(5);
            }
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(state)
    }

    /// A call that undoes something, or only asks.
    pub fn undo(&self) -> Result<parking_lot::MutexGuard<'_, State>> {
        let state = self.0.state.lock();
        let strict = state.strict;
        if strict {
            drop(state);
            return self.call();
        }
        Ok(state)
    }
}

impl Domain for Fake {
    fn info(&self) -> Result<Option<DomainInfo>> {
        let state = self.undo()?;
        Ok(state.alive.then(|| DomainInfo {
            domid: 3,
            hvm: state.contexts.is_empty(),
            paused: state.pauses > 0,
            vcpus: state.vcpus,
            pages: 0x100 + state.added.len() as u64,
            max_pages: state.max,
            devices: state.devices,
            ..DomainInfo::default()
        }))
    }

    fn pause(&self) -> Result<()> {
        self.call()?.pauses += 1;
        Ok(())
    }

    fn unpause(&self) -> Result<()> {
        let mut state = self.undo()?;
        if state.pauses == 0 {
            return errno(EINVAL);
        }
        state.pauses -= 1;
        Ok(())
    }

    fn pause_vcpu(&self, vcpu: u32) -> Result<()> {
        let mut state = self.call()?;
        if !state.gdbsx {
            return errno(38);
        }
        if state.pauses == 0 {
            return errno(EBUSY);
        }
        state.still.push(vcpu);
        Ok(())
    }

    fn unpause_vcpu(&self, vcpu: u32) -> Result<()> {
        let mut state = self.undo()?;
        if state.pauses == 0 {
            return errno(EBUSY);
        }
        state.still.retain(|still| *still != vcpu);
        Ok(())
    }

    fn single_step(&self, vcpu: u32, on: bool) -> Result<()> {
        let mut state = self.undo()?;
        if on {
            state.stepping.insert(vcpu)
        } else {
            state.stepping.remove(&vcpu)
        };
        Ok(())
    }

    fn ran(&self, vcpu: u32) -> Result<Ran> {
        let mut state = self.undo()?;
        if state.stopping > 0 {
            state.stopping -= 1;
            *state.ran.entry(vcpu).or_default() += 1;
            return Ok(Ran::On);
        }
        Ok(state.ran.get(&vcpu).map_or(Ran::Halted, |ran| Ran::For(*ran)))
    }
}

impl Context for Fake {
    fn load(&self) -> Result<Vec<u8>> {
        Ok(self.call()?.records.clone())
    }

    fn store(&self, records: &[u8]) -> Result<()> {
        let mut state = self.call()?;
        assert!(state.pauses > 0, "the domain runs between load and store");
        let new = Records::parse(records.to_vec()).unwrap();
        let mut all = Records::parse(state.records.clone()).unwrap();
        for vcpu in 0..state.vcpus {
            for kind in [kind::CPU, kind::LAPIC, kind::LAPIC_REGS] {
                if let (Some(from), Some(to)) = (new.get(kind, vcpu), all.get_mut(kind, vcpu)) {
                    to.copy_from_slice(from);
                } else {
                    assert!(kind != kind::CPU, "vCPU {vcpu} is stopped for good");
                }
            }
        }
        state.records = all.part_all();
        Ok(())
    }

    fn record(&self, kind: u16, vcpu: u32, bytes: usize) -> Result<Vec<u8>> {
        let records = Records::parse(self.call()?.records.clone()).unwrap();
        Ok(records.get(kind, vcpu).unwrap()[..bytes].to_vec())
    }

    fn inject(&self, vcpu: u32, trap: Trap) -> Result<()> {
        let mut state = self.call()?;
        if state.injected.iter().any(|(other, _)| *other == vcpu) {
            return errno(EBUSY);
        }
        state.injected.push((vcpu, trap));
        Ok(())
    }

    fn message(&self, address: u64, data: u32) -> Result<()> {
        let trap = Trap { vector: data as u8, kind: 0, error: None, length: 0, cr2: address };
        self.call()?.injected.push((u32::MAX, trap));
        Ok(())
    }

    fn nmi(&self, vcpu: u32) -> Result<()> {
        self.call()?.injected.push((vcpu, Trap { vector: 2, kind: 2, error: None, length: 0, cr2: 0 }));
        Ok(())
    }
}

impl Monitor for Fake {
    fn take(&mut self) -> Result<()> {
        let mut state = self.call()?;
        if state.ring || state.busy {
            return errno(EBUSY);
        }
        state.ring = true;
        Ok(())
    }

    fn hold_writes(&self) -> Result<()> {
        self.call()?.holds_writes = true;
        Ok(())
    }

    fn give_back(&mut self) -> Result<()> {
        let mut state = self.undo()?;
        if !state.ring && !state.busy {
            return errno(EINVAL);
        }
        assert!(state.waiting == 0 || std::mem::take(&mut state.killed), "a vCPU waits for ever");
        state.waiting = 0;
        (state.ring, state.busy, state.holds_writes) = (false, false, false);
        state.set.clear();
        Ok(())
    }

    fn set(&self, what: Intercept, on: bool) -> Result<()> {
        let mut state = if on { self.call()? } else { self.undo()? };
        assert!(state.ring, "{what:?} without a ring");
        let changed = if on { state.set.insert(what) } else { state.set.remove(&what) };
        if changed { Ok(()) } else { errno(EEXIST) }
    }

    fn request(&mut self) -> Result<Option<Slot>> {
        let mut state = self.undo()?;
        let flood = state.flood.filter(|_| !state.set.is_empty());
        let request = state.requests.pop_front().or(flood);
        state.waiting += usize::from(request.is_some());
        Ok(request)
    }

    fn respond(&mut self, response: &Slot) -> Result<()> {
        let mut state = self.undo()?;
        assert!(state.ring, "an answer without a ring");
        state.responses.push(*response);
        state.waiting = state.waiting.saturating_sub(1);
        let vcpu = u32::from_le_bytes([response[12], response[13], response[14], response[15]]);
        if state.strict && state.pauses == 0 {
            // It goes on at once.
            *state.ran.entry(vcpu).or_default() += 1;
            state.injected.retain(|(other, _)| *other != vcpu);
        }
        self.0.changed.notify_all();
        Ok(())
    }

    fn wait(&mut self, timeout: Duration) -> Result<()> {
        let mut state = self.0.state.lock();
        if !state.rung && state.requests.is_empty() {
            let _ = self.0.changed.wait_for(&mut state, timeout);
        }
        state.rung = false;
        Ok(())
    }
}
