//! A driver over the built-in machine that fails its Nth call, hangs in its calls, or says that its VM is gone.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use vmtree_api::*;

/// When and how calls go wrong.
#[derive(Default)]
struct Plan {
    calls: AtomicU64,
    fails_at: AtomicU64,
    struck: AtomicBool,
    gone: AtomicBool,
    hung: AtomicU64,
    hanging: Mutex<bool>,
    plugged: Mutex<Vec<Block>>,
    release: Condvar,
}

#[derive(Clone)]
pub struct Faults(Arc<Plan>);

impl Faults {
    /// The call with this number, counted from 0, fails; all others work.
    pub fn nth(nth: u64) -> Self {
        Self(Arc::new(Plan { fails_at: AtomicU64::new(nth), ..Plan::default() }))
    }

    /// From now on the call with this number fails.
    pub fn strike_at(&self, nth: u64) {
        self.0.calls.store(0, Ordering::SeqCst);
        self.0.fails_at.store(nth, Ordering::SeqCst);
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
        if self.0.calls.fetch_add(1, Ordering::SeqCst) == self.0.fails_at.load(Ordering::SeqCst) {
            self.0.struck.store(true, Ordering::SeqCst);
            return Err(Error::new(ErrorKind::Io, "test", "this call was to fail"));
        }
        Ok(())
    }
}

/// The machine below, to be looked at past the faults.
#[derive(Clone)]
pub struct Inner(Arc<dyn Driver>);

impl Inner {
    pub fn state(&self) -> RunState {
        self.0.execution().unwrap().state().unwrap()
    }

    /// Whether the vCPU goes on: it executes instructions, on the default view.
    pub fn goes_on(&self) -> bool {
        let registers = || self.0.registers().unwrap().read(VcpuId(0)).unwrap();
        let before = registers();
        let moves = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            registers() != before
        });
        moves && self.0.views().unwrap().current(VcpuId(0)).unwrap() == ViewId(0)
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
    fn events(&self) -> std::result::Result<&dyn events::EventSource, Missing> {
        self.inner.events()?;
        Ok(self)
    }
    fn views(&self) -> std::result::Result<&dyn views::Views, Missing> {
        self.inner.views()?;
        Ok(self)
    }
    fn injection(&self) -> std::result::Result<&dyn events::Injection, Missing> {
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
