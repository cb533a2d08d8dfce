//! A VM that does nothing but raise events, as fast as they are taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use vmtree_api::events::{
    Action, Detail, Event, EventKind, EventOffer, EventSource, Held, Injection, Move, Wanted,
};
use vmtree_api::views::Views;
use vmtree_api::*;

/// The driver.
pub struct Mock {
    facts: Facts,
    offers: Vec<EventOffer>,
    armed: AtomicBool,
    raised: AtomicU64,
}

impl Mock {
    pub fn new() -> Arc<Self> {
        let kind = EventKind::Cr3;
        let ways = kind.ways().iter().map(|way| (*way, Ok(()))).collect();
        let offers =
            vec![EventOffer { kind, ways, actions: vec![(Action::Continue, Ok(()))], gaps: Vec::new() }];
        let facts =
            Facts { driver: "mock", name: None, arch: Arch::X86_64, vcpus: Some(1), extra: Vec::new() };
        Arc::new(Self { facts, offers, armed: AtomicBool::new(false), raised: AtomicU64::new(0) })
    }

    /// How many events were taken so far.
    pub fn raised(&self) -> u64 {
        self.raised.load(Ordering::Relaxed)
    }
}

fn none() -> Missing {
    Missing::new("this VM has events alone")
}

impl Driver for Mock {
    fn facts(&self) -> &Facts {
        &self.facts
    }
    fn memory(&self) -> &dyn Memory {
        self
    }
    fn registers(&self) -> std::result::Result<&dyn Registers, Missing> {
        Err(none())
    }
    fn execution(&self) -> std::result::Result<&dyn Execution, Missing> {
        Err(none())
    }
    fn events(&self) -> std::result::Result<&dyn EventSource, Missing> {
        Ok(self)
    }
    fn views(&self) -> std::result::Result<&dyn Views, Missing> {
        Err(none())
    }
    fn injection(&self) -> std::result::Result<&dyn Injection, Missing> {
        Err(none())
    }
}

impl Memory for Mock {
    fn map(&self) -> Arc<MemoryMap> {
        Arc::default()
    }
    fn blocks(&self) -> Vec<Block> {
        Vec::new()
    }
    fn read(&self, _: Gpa, _: &mut [u8]) -> Result<usize> {
        Err(Error::new(ErrorKind::NotFound, "read", "no memory"))
    }
    fn write(&self, _: Gpa, _: &[u8]) -> Result<usize> {
        Err(Error::new(ErrorKind::NotFound, "write", "no memory"))
    }
    fn lend(&self, _: Gpa, _: usize, _: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(false)
    }
}

impl EventSource for Mock {
    fn offers(&self) -> &[EventOffer] {
        &self.offers
    }
    fn watch(&self, wanted: &Wanted) -> Result<()> {
        self.armed.store(!wanted.watches.is_empty(), Ordering::SeqCst);
        Ok(())
    }
    fn next(&self, timeout: Duration) -> Result<Option<Held>> {
        if !self.armed.load(Ordering::Relaxed) {
            std::thread::sleep(timeout.min(Duration::from_millis(1)));
            return Ok(None);
        }
        let new = self.raised.fetch_add(1, Ordering::Relaxed);
        let detail = Detail::Control(Move::To { old: new.wrapping_sub(1), new });
        let (vcpu, view) = (VcpuId(0), ViewId(0));
        let event = Event { vcpu, view, kind: EventKind::Cr3, rip: 0xffff_8000_0010_0000, cr3: new, detail };
        Ok(Some(Held::new(event, |_| Ok(()))))
    }
}
