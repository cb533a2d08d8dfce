//! A driver over the built-in machine that fails its Nth call, hangs in its calls, or says that its VM is gone.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use vmtree_api::events::{EventSource, Injection, Wanted};
use vmtree_api::views::Views;
use vmtree_api::*;
use vmtree_guest::mailbox::{Counter, counter_of};
use vmtree_guest::{Bytes, Mailbox};

/// The calls that are counted by themselves: how many there are of some is not the session's alone to say.
#[derive(Clone, Copy, Debug)]
pub enum Call {
    /// All others.
    Plain,
    /// For the next event.
    Next,
    /// The answer to a held event.
    Reply,
    /// Which view a vCPU is on. stat(2) asks it too, for a size, and has nobody to tell of an error.
    Look,
}

/// When and how calls go wrong.
#[derive(Default)]
struct Plan {
    /// Its own: an address would come again.
    number: u64,
    /// By [`Call`].
    calls: [AtomicU64; 4],
    /// By [`Call`]; counted from 1, and 0 is none.
    fails_at: [AtomicU64; 4],
    struck: AtomicBool,
    made: Mutex<Made>,
    held: AtomicU64,
    gone: AtomicBool,
    hung: AtomicU64,
    hanging: Mutex<bool>,
    plugged: Mutex<Vec<Block>>,
    release: Condvar,
}

/// What the driver below was told to.
#[derive(Default)]
pub struct Made {
    pub wanted: Wanted,
    pub views: BTreeSet<ViewId>,
}

#[derive(Clone)]
pub struct Faults(Arc<Plan>);

impl Faults {
    /// The call with this number, counted from 0, fails; all others work.
    pub fn nth(nth: u64) -> Self {
        Self::of(Call::Plain, nth)
    }

    /// The same, of one kind of call.
    pub fn of(call: Call, nth: u64) -> Self {
        static PLANS: AtomicU64 = AtomicU64::new(0);
        let number = PLANS.fetch_add(1, Ordering::SeqCst);
        let faults = Self(Arc::new(Plan { number, ..Plan::default() }));
        faults.0.fails_at[call as usize].store(nth.wrapping_add(1), Ordering::SeqCst);
        faults
    }

    /// What the driver below was told to.
    pub fn made(&self) -> MutexGuard<'_, Made> {
        self.0.made.lock()
    }

    /// How many events are held.
    pub fn held(&self) -> u64 {
        self.0.held.load(Ordering::SeqCst)
    }

    /// What the error of the call that fails says; no other says the same.
    pub fn error(&self) -> String {
        format!("this call was to fail, by plan {}.", self.0.number)
    }

    /// From now on the call with this number fails.
    pub fn strike_at(&self, nth: u64) {
        self.0.calls[Call::Plain as usize].store(0, Ordering::SeqCst);
        self.0.fails_at[Call::Plain as usize].store(nth + 1, Ordering::SeqCst);
    }

    /// Whether it has come to that call.
    pub fn struck(&self) -> bool {
        self.0.struck.load(Ordering::SeqCst)
    }

    /// Calls that may wait do so until this is taken back.
    pub fn hang(&self, on: bool) {
        *self.0.hanging.lock() = on;
        self.0.release.notify_all();
    }

    /// How many calls have hung.
    pub fn hung(&self) -> u64 {
        self.0.hung.load(Ordering::SeqCst)
    }

    /// One more block of RAM, which no region shows.
    pub fn plug(&self, name: &str, bytes: &[u8]) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let block = Block { name: name.into(), bytes: bytes.len() as u64, file: Arc::new(file) };
        self.0.plugged.lock().push(block);
    }

    /// Without what was plugged in.
    pub fn unplug(&self) {
        self.0.plugged.lock().clear();
    }

    /// The VM is gone.
    pub fn gone(&self) {
        self.0.gone.store(true, Ordering::SeqCst);
    }

    pub fn call(&self, may_wait: bool) -> Result<()> {
        self.count(Call::Plain, may_wait)
    }

    pub fn count(&self, call: Call, may_wait: bool) -> Result<()> {
        if self.0.gone.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Gone, "test", "the VM is gone"));
        }
        if may_wait {
            let mut hanging = self.0.hanging.lock();
            if *hanging {
                self.0.hung.fetch_add(1, Ordering::SeqCst);
            }
            while *hanging {
                self.0.release.wait(&mut hanging);
            }
        }
        let number = self.0.calls[call as usize].fetch_add(1, Ordering::SeqCst) + 1;
        if number == self.0.fails_at[call as usize].load(Ordering::SeqCst) {
            self.0.struck.store(true, Ordering::SeqCst);
            return Err(Error::new(ErrorKind::Io, "test", self.error()));
        }
        Ok(())
    }
}

/// An event that is held, counted as long as it is.
pub struct Counted(Faults);

impl Counted {
    pub fn new(faults: &Faults) -> Self {
        faults.0.held.fetch_add(1, Ordering::SeqCst);
        Self(faults.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.held.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The machine below, to be looked at past the faults.
#[derive(Clone)]
pub struct Inner(Arc<dyn Driver>);

impl Inner {
    pub fn state(&self) -> RunState {
        self.0.execution().unwrap().state().unwrap()
    }

    /// How many ticks of its timer a vCPU has had.
    pub fn ticks(&self, vcpu: u32) -> u64 {
        Mailbox::new(self.clone()).word(counter_of(u64::from(vcpu), Counter::Ticks)).unwrap()
    }

    pub fn view(&self, vcpu: u32) -> ViewId {
        self.0.views().unwrap().current(VcpuId(vcpu)).unwrap()
    }

    pub fn force_resume(&self) {
        self.0.execution().unwrap().force_resume().unwrap();
    }

    pub fn r14_r15(&self) -> (u64, u64) {
        let RegisterSet::X86_64(regs) = self.0.registers().unwrap().read(VcpuId(0)).unwrap() else {
            panic!("an x86-64 machine");
        };
        (regs.gpr[14], regs.gpr[15])
    }
}

impl Bytes for Inner {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.memory().read(Gpa(gpa), buf).map(drop).map_err(io::Error::other)
    }
    fn write(&self, gpa: u64, data: &[u8]) -> io::Result<()> {
        self.0.memory().write(Gpa(gpa), data).map(drop).map_err(io::Error::other)
    }
}

/// The driver that goes wrong.
pub struct Faulty {
    pub inner: Arc<dyn Driver>,
    pub faults: Faults,
}

impl Faulty {
    /// Over a small built-in machine.
    pub fn over_emu(faults: Faults) -> (Arc<Self>, Inner) {
        let source = Source::new("emu", "", vec![("ram".to_owned(), "16M".to_owned())]);
        let inner: Arc<dyn Driver> = Arc::from(vmtree_emu::open(source, Arc::new(NoHost)).unwrap());
        (Arc::new(Self { inner: inner.clone(), faults }), Inner(inner))
    }
}

impl Driver for Faulty {
    fn facts(&self) -> &Facts {
        self.inner.facts()
    }
    fn memory(&self) -> &dyn Memory {
        self
    }
    fn registers(&self) -> std::result::Result<&dyn Registers, Missing> {
        self.inner.registers()?;
        Ok(self)
    }
    fn execution(&self) -> std::result::Result<&dyn Execution, Missing> {
        self.inner.execution()?;
        Ok(self)
    }
    fn events(&self) -> std::result::Result<&dyn EventSource, Missing> {
        self.inner.events()?;
        Ok(self)
    }
    fn views(&self) -> std::result::Result<&dyn Views, Missing> {
        self.inner.views()?;
        Ok(self)
    }
    fn injection(&self) -> std::result::Result<&dyn Injection, Missing> {
        self.inner.injection()?;
        Ok(self)
    }
}

impl Memory for Faulty {
    fn map(&self) -> Arc<MemoryMap> {
        self.inner.memory().map()
    }
    fn blocks(&self) -> Vec<Block> {
        let mut blocks = self.inner.memory().blocks();
        blocks.extend(self.faults.0.plugged.lock().iter().cloned());
        blocks.sort_by(|a, b| a.name.cmp(&b.name));
        blocks
    }
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<usize> {
        self.faults.call(false)?;
        self.inner.memory().read(gpa, buf)
    }
    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<usize> {
        self.faults.call(false)?;
        self.inner.memory().write(gpa, data)
    }
    fn lend(&self, gpa: Gpa, bytes: usize, take: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.faults.call(false)?;
        self.inner.memory().lend(gpa, bytes, take)
    }
}

impl Registers for Faulty {
    fn offers(&self) -> &[RegOffer] {
        self.inner.registers().unwrap().offers()
    }
    fn pace(&self) -> Pace {
        Pace::Posted
    }
    fn read(&self, vcpu: VcpuId) -> Result<RegisterSet> {
        self.faults.call(true)?;
        self.inner.registers().unwrap().read(vcpu)
    }
    fn read_some(&self, vcpu: VcpuId, wanted: &[RegId]) -> Result<RegisterSet> {
        self.faults.call(true)?;
        self.inner.registers().unwrap().read_some(vcpu, wanted)
    }
    fn cost(&self) -> Option<Duration> {
        self.inner.registers().unwrap().cost()
    }
    fn write(&self, vcpu: VcpuId, changes: &[(RegId, RegValue)]) -> Result<()> {
        self.faults.call(true)?;
        self.inner.registers().unwrap().write(vcpu, changes)
    }
    fn msrs(&self) -> std::result::Result<&dyn Msrs, Missing> {
        Ok(self)
    }
}

impl Msrs for Faulty {
    fn read(&self, vcpu: VcpuId, index: u32) -> Result<u64> {
        self.faults.call(true)?;
        self.inner.registers().unwrap().msrs().unwrap().read(vcpu, index)
    }
    fn write(&self, vcpu: VcpuId, index: u32, value: u64) -> Result<()> {
        self.faults.call(true)?;
        self.inner.registers().unwrap().msrs().unwrap().write(vcpu, index, value)
    }
}

impl Execution for Faulty {
    fn state(&self) -> Result<RunState> {
        self.faults.call(true)?;
        self.inner.execution().unwrap().state()
    }
    fn pause(&self) -> Result<Pause> {
        self.faults.call(true)?;
        let pause = self.inner.execution().unwrap().pause()?;
        let faults = self.faults.clone();
        Ok(Pause::new(move || {
            // Told badly or not, the VM runs: a driver whose resume fails has to see to that.
            let told = faults.call(false);
            pause.resume()?;
            told
        }))
    }
    fn force_resume(&self) -> Result<()> {
        self.faults.call(true)?;
        self.inner.execution().unwrap().force_resume()
    }
    fn step(&self, vcpu: VcpuId, count: u64, cancel: &Cancel) -> Result<u64> {
        self.faults.call(true)?;
        self.inner.execution().unwrap().step(vcpu, count, cancel)
    }
}
