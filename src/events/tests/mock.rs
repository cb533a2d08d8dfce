//! A driver whose events are made by who tests it. It names nothing of the hub, so a benchmark can take it as well.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use vmtree_api::events::{
    Action, Detail, Event, EventKind, EventOffer, EventSource, Held, Injection, Move, Verdict, Wanted,
};
use vmtree_api::views::{Remap, Views};
use vmtree_api::{
    Access, Arch, Block, Driver, Error, ErrorKind, Execution, Facts, Gfn, Gpa, Memory, MemoryMap, Missing,
    Registers, VcpuId, ViewId,
};

/// A machine without memory or registers that offers every event.
pub struct Mock {
    facts: Facts,
    pub offers: Vec<EventOffer>,
    state: Arc<Mutex<State>>,
    more: Condvar,
}

#[derive(Default)]
pub struct State {
    events: VecDeque<(Event, bool)>,
    /// What was told by `watch`, in order.
    pub watched: Vec<Wanted>,
    /// What was answered to events that waited, in order.
    pub answers: Vec<(Event, Verdict)>,
    /// How `watch` and `destroy` fail.
    pub fails: Option<ErrorKind>,
    /// Whether `watch` alone fails.
    pub deaf: bool,
    /// The actions that are refused when they are tried.
    pub refuses: Vec<Action>,
    /// The same, once.
    pub refuses_once: Option<Action>,
    pub gone: bool,
    pub views: u32,
    /// How often `next` was called.
    pub asked: u64,
    /// What the next call of `next` that finds nothing does before it says so.
    pub missed: Option<Box<dyn FnOnce() + Send>>,
}

impl Mock {
    pub fn new() -> Arc<Self> {
        Self::offering(EventKind::ALL.iter().map(|kind| offer(*kind)).collect())
    }

    pub fn offering(offers: Vec<EventOffer>) -> Arc<Self> {
        let facts =
            Facts { driver: "mock", name: None, arch: Arch::X86_64, vcpus: Some(4), extra: Vec::new() };
        Arc::new(Self { facts, offers, state: Arc::default(), more: Condvar::new() })
    }

    pub fn state(&self) -> parking_lot::MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Raises an event whose vCPU waits.
    pub fn raise(&self, event: Event) {
        self.state().events.push_back((event, true));
        self.more.notify_one();
    }

    /// Raises an event whose vCPU does not wait.
    pub fn tell(&self, events: impl IntoIterator<Item = Event>) {
        self.state().events.extend(events.into_iter().map(|event| (event, false)));
        self.more.notify_one();
    }

    /// The VM goes.
    pub fn die(&self) {
        self.state().gone = true;
        self.more.notify_one();
    }

    pub fn wanted(&self) -> Wanted {
        self.state().watched.last().cloned().unwrap_or_default()
    }

    pub fn verdicts(&self) -> Vec<Verdict> {
        self.state().answers.iter().map(|(_, verdict)| verdict.clone()).collect()
    }
}

/// Everything of a kind.
pub fn offer(kind: EventKind) -> EventOffer {
    let ways = kind.ways().iter().map(|way| (*way, Ok(()))).collect();
    let actions = Action::ALL.iter().map(|action| (*action, Ok(()))).collect();
    EventOffer { kind, ways, actions, gaps: Vec::new() }
}

pub fn cr3(vcpu: u32, new: u64) -> Event {
    let detail = Detail::Control(Move::To { old: 0, new });
    Event { vcpu: VcpuId(vcpu), view: ViewId(0), kind: EventKind::Cr3, rip: 0x1000, cr3: 0x2000, detail }
}

pub fn msr(vcpu: u32, index: u32) -> Event {
    let detail = Detail::Msr { index, access: Move::From { value: 7 } };
    Event { kind: EventKind::Msr, detail, ..cr3(vcpu, 0) }
}

pub fn slat(gpa: u64, access: Access) -> Event {
    let detail = Detail::Slat { access, gpa: Gpa(gpa), gva: None, page_walk: false };
    Event { kind: EventKind::Slat, detail, ..cr3(0, 0) }
}

impl EventSource for Mock {
    fn offers(&self) -> &[EventOffer] {
        &self.offers
    }

    fn watch(&self, wanted: &Wanted) -> Result<(), Error> {
        let mut state = self.state();
        if let Some(kind) = state.fails {
            return Err(Error::new(kind, "watch", "as the test wants it"));
        }
        if state.deaf {
            return Err(Error::new(ErrorKind::Io, "watch", "as the test wants it"));
        }
        state.watched.push(wanted.clone());
        if *wanted == Wanted::default() {
            // Whoever waits for an event need not wait on.
            self.more.notify_one();
        }
        Ok(())
    }

    fn next(&self, timeout: Duration) -> Result<Option<Held>, Error> {
        let late = Instant::now() + timeout;
        let mut state = self.state();
        state.asked += 1;
        loop {
            if let Some((event, waits)) = state.events.pop_front() {
                return Ok(Some(self.held(event, waits)));
            }
            if state.gone {
                return Err(Error::new(ErrorKind::Gone, "next", "the VM is gone"));
            }
            // Where nothing is watched there is nothing to wait for.
            let unwatched = state.watched.last().is_none_or(|wanted| *wanted == Wanted::default());
            let until = if unwatched { Instant::now() + Duration::from_millis(1) } else { late };
            if self.more.wait_until(&mut state, until.min(late)).timed_out() {
                let missed = state.missed.take();
                drop(state);
                missed.into_iter().for_each(|missed| missed());
                return Ok(None);
            }
        }
    }
}

impl Mock {
    fn held(&self, event: Event, waits: bool) -> Held {
        if !waits {
            return Held::told(event);
        }
        let state = self.state.clone();
        Held::new(event, move |verdict| {
            let mut state = state.lock();
            if state.gone {
                return Err(Error::new(ErrorKind::Gone, "answer", "the VM is gone"));
            }
            let once = state.refuses_once.take_if(|action| *action == verdict.action());
            if once.is_some() || state.refuses.contains(&verdict.action()) {
                return Err(Error::new(ErrorKind::Invalid, "answer", "as the test wants it"));
            }
            state.answers.push((event, verdict.clone()));
            Ok(())
        })
    }
}

impl Views for Mock {
    fn create(&self) -> Result<ViewId, Error> {
        let mut state = self.state();
        state.views += 1;
        Ok(ViewId(state.views))
    }
    fn destroy(&self, _view: ViewId) -> Result<(), Error> {
        let mut state = self.state();
        if let Some(kind) = state.fails {
            return Err(Error::new(kind, "destroy", "as the test wants it"));
        }
        // The number of the last one is given again.
        state.views -= 1;
        Ok(())
    }
    fn remap(&self, _view: ViewId, _gfn: Gfn, _to: Remap) -> Result<(), Error> {
        Ok(())
    }
    fn switch(&self, _vcpu: Option<VcpuId>, _view: ViewId) -> Result<(), Error> {
        Ok(())
    }
    fn current(&self, _vcpu: VcpuId) -> Result<ViewId, Error> {
        Ok(ViewId(0))
    }
    fn read(&self, _view: ViewId, _gpa: Gpa, _buf: &mut [u8]) -> Result<usize, Error> {
        Ok(0)
    }
    fn write(&self, _view: ViewId, _gpa: Gpa, _data: &[u8]) -> Result<usize, Error> {
        Ok(0)
    }
}

impl Memory for Mock {
    fn map(&self) -> Arc<MemoryMap> {
        Arc::default()
    }
    fn blocks(&self) -> Vec<Block> {
        Vec::new()
    }
    fn read(&self, _gpa: Gpa, _buf: &mut [u8]) -> Result<usize, Error> {
        Ok(0)
    }
    fn write(&self, _gpa: Gpa, _data: &[u8]) -> Result<usize, Error> {
        Ok(0)
    }
    fn lend(&self, _gpa: Gpa, _bytes: usize, _take: &mut dyn FnMut(&[u8])) -> Result<bool, Error> {
        Ok(false)
    }
}

impl Driver for Mock {
    fn facts(&self) -> &Facts {
        &self.facts
    }
    fn memory(&self) -> &dyn Memory {
        self
    }
    fn registers(&self) -> Result<&dyn Registers, Missing> {
        Err(Missing::new("none"))
    }
    fn execution(&self) -> Result<&dyn Execution, Missing> {
        Err(Missing::new("none"))
    }
    fn events(&self) -> Result<&dyn EventSource, Missing> {
        Ok(self)
    }
    fn views(&self) -> Result<&dyn Views, Missing> {
        Ok(self)
    }
    fn injection(&self) -> Result<&dyn Injection, Missing> {
        Err(Missing::new("none"))
    }
}
