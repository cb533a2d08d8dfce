//! The built-in machine with events, views and injection that a test scripts.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use vmtree_api::events::*;
use vmtree_api::views::{Remap, Views};
use vmtree_api::*;

#[derive(Default)]
struct State {
    wanted: Wanted,
    raised: VecDeque<Held>,
    verdicts: Vec<(VcpuId, Verdict)>,
    injected: Vec<(VcpuId, Inject)>,
    current: HashMap<u32, ViewId>,
    views: Vec<ViewId>,
    remaps: HashMap<(ViewId, Gfn), Remap>,
    copies: HashMap<(ViewId, Gfn), Vec<u8>>,
    gone: bool,
    hanging: bool,
}

/// What the test sees of the machine, and how it has things happen.
#[derive(Clone, Default)]
pub struct Script(Arc<(Mutex<State>, Condvar)>, Arc<AtomicU64>);

impl Script {
    fn state(&self) -> parking_lot::MutexGuard<'_, State> {
        self.0.0.lock()
    }

    /// A change of address space on a vCPU, if somebody watches; whether it is held.
    pub fn cr3(&self, vcpu: u32, new: u64) -> Option<bool> {
        self.raise(vcpu, EventKind::Cr3, Detail::Control(Move::To { old: 1, new }))
    }

    fn raise(&self, vcpu: u32, kind: EventKind, detail: Detail) -> Option<bool> {
        let event = Event { vcpu: VcpuId(vcpu), view: ViewId(0), kind, rip: 0x1000, cr3: 1, detail };
        let mut state = self.state();
        let matching =
            |watch: &&Watch| watch.kind == kind && watch.vcpu.is_none_or(|wanted| wanted == event.vcpu);
        let watches: Vec<_> = state.wanted.watches.iter().filter(matching).collect();
        let hold = watches.iter().any(|watch| watch.hold);
        if watches.is_empty() {
            return None;
        }
        let script = self.clone();
        let held = Held::new(event, move |verdict| {
            if hold {
                let mut state = script.state();
                if state.gone {
                    return Err(Error::new(ErrorKind::Gone, "answer", "the VM is gone"));
                }
                state.verdicts.push((VcpuId(vcpu), verdict.clone()));
                script.0.1.notify_all();
            }
            Ok(())
        });
        state.raised.push_back(held);
        self.0.1.notify_all();
        Some(hold)
    }

    /// Waits until there are this many watches.
    pub fn wait_watches(&self, count: usize) {
        self.wait(&format!("{count} watches"), |state| state.wanted.watches.len() == count);
    }

    fn wait(&self, what: &str, done: impl Fn(&State) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(15);
        let mut state = self.state();
        while !done(&state) {
            let late = self.0.1.wait_until(&mut state, deadline).timed_out();
            assert!(!late, "not in time: {what}; wanted {:?}, verdicts {:?}", state.wanted, state.verdicts);
        }
    }

    /// Waits for this many verdicts and returns them all.
    pub fn verdicts(&self, count: usize) -> Vec<(u32, Verdict)> {
        self.wait(&format!("{count} verdicts"), |state| state.verdicts.len() >= count);
        self.state().verdicts.iter().map(|(vcpu, verdict)| (vcpu.0, verdict.clone())).collect()
    }

    /// The verdicts so far.
    pub fn verdicts_now(&self) -> usize {
        self.state().verdicts.len()
    }

    pub fn wanted(&self) -> Wanted {
        self.state().wanted.clone()
    }

    pub fn injected(&self) -> Vec<(VcpuId, Inject)> {
        self.state().injected.clone()
    }

    pub fn view(&self, vcpu: u32) -> ViewId {
        self.state().current.get(&vcpu).copied().unwrap_or_default()
    }

    pub fn views(&self) -> Vec<ViewId> {
        self.state().views.clone()
    }

    /// The VM is gone.
    pub fn gone(&self) {
        self.state().gone = true;
        self.0.1.notify_all();
    }

    /// Posted calls hang from now on, or no more.
    pub fn hang(&self, on: bool) {
        self.state().hanging = on;
        self.0.1.notify_all();
    }

    /// How many calls hang or have hung.
    pub fn hung(&self) -> u64 {
        self.1.load(Ordering::SeqCst)
    }

    /// A call that may wait.
    fn posted(&self) -> Result<parking_lot::MutexGuard<'_, State>> {
        let mut state = self.state();
        if state.hanging {
            self.1.fetch_add(1, Ordering::SeqCst);
        }
        while state.hanging {
            self.0.1.wait(&mut state);
        }
        if state.gone {
            return Err(Error::new(ErrorKind::Gone, "test", "the VM is gone"));
        }
        Ok(state)
    }
}

/// The machine.
pub struct Scripted {
    inner: Box<dyn Driver>,
    script: Script,
    offers: Vec<EventOffer>,
}

/// cr3 and msr with all there is, but no step; interrupts that can only be swallowed; ports that are never seen.
fn offers() -> Vec<EventOffer> {
    let offer = |kind: EventKind, missing: &[Action]| EventOffer {
        kind,
        ways: kind.ways().iter().map(|way| (*way, Ok(()))).collect(),
        actions: Action::ALL
            .iter()
            .map(|action| {
                let gap = Missing::new("this test has none");
                (*action, if missing.contains(action) { Err(gap) } else { Ok(()) })
            })
            .collect(),
        gaps: Vec::new(),
    };
    let mut unseen = offer(EventKind::Io, &[]);
    unseen.ways.iter_mut().for_each(|(_, has)| *has = Err(Missing::new("this test sees none")));
    vec![
        offer(EventKind::Cr3, &[Action::Step]),
        offer(EventKind::Msr, &[]),
        offer(EventKind::Interrupt, &[Action::Inject]),
        offer(EventKind::Slat, &[]),
        unseen,
    ]
}

impl Scripted {
    pub fn new() -> (Arc<Self>, Script) {
        let options = [("ram", "16M"), ("vcpus", "2")].map(|(key, value)| (key.into(), value.into()));
        let source = Source::new("emu", "", options.to_vec());
        let inner = vmtree_emu::open(source, Arc::new(NoHost)).unwrap();
        let script = Script::default();
        (Arc::new(Self { inner, script: script.clone(), offers: offers() }), script)
    }
}

impl Driver for Scripted {
    fn facts(&self) -> &Facts {
        self.inner.facts()
    }
    fn memory(&self) -> &dyn Memory {
        self.inner.memory()
    }
    fn registers(&self) -> std::result::Result<&dyn Registers, Missing> {
        self.inner.registers()
    }
    fn execution(&self) -> std::result::Result<&dyn Execution, Missing> {
        self.inner.execution()
    }
    fn events(&self) -> std::result::Result<&dyn EventSource, Missing> {
        Ok(self)
    }
    fn views(&self) -> std::result::Result<&dyn Views, Missing> {
        Ok(self)
    }
    fn injection(&self) -> std::result::Result<&dyn Injection, Missing> {
        Ok(self)
    }
}

impl EventSource for Scripted {
    fn offers(&self) -> &[EventOffer] {
        &self.offers
    }
    fn watch(&self, wanted: &Wanted) -> Result<()> {
        self.script.posted()?.wanted = wanted.clone();
        self.script.0.1.notify_all();
        Ok(())
    }
    fn next(&self, timeout: Duration) -> Result<Option<Held>> {
        let deadline = Instant::now() + timeout;
        let mut state = self.script.state();
        loop {
            if state.gone {
                return Err(Error::new(ErrorKind::Gone, "test", "the VM is gone"));
            }
            if let Some(held) = state.raised.pop_front() {
                return Ok(Some(held));
            }
            if self.script.0.1.wait_until(&mut state, deadline).timed_out() {
                return Ok(None);
            }
        }
    }
}

impl Injection for Scripted {
    fn inject(&self, vcpu: VcpuId, what: Inject) -> Result<()> {
        self.script.posted()?.injected.push((vcpu, what));
        Ok(())
    }
}

fn frame(gpa: Gpa) -> (Gfn, usize) {
    (gpa.gfn(), gpa.page_offset() as usize)
}

fn shown(state: &State, view: ViewId, gfn: Gfn, at: usize) -> Gpa {
    let frame = match state.remaps.get(&(view, gfn)) {
        Some(Remap::Frame(other)) => other.0,
        _ => gfn.0,
    };
    Gpa(frame * 4096 + at as u64)
}

impl Views for Scripted {
    fn create(&self) -> Result<ViewId> {
        let mut state = self.script.posted()?;
        let free = (1..4).map(ViewId).find(|id| !state.views.contains(id));
        let id = free.ok_or_else(|| Error::new(ErrorKind::NoSpace, "make view", "there are 3 already"))?;
        state.views.push(id);
        Ok(id)
    }
    fn destroy(&self, view: ViewId) -> Result<()> {
        let mut state = self.script.posted()?;
        if state.current.values().any(|current| *current == view) {
            return Err(Error::new(ErrorKind::Busy, "remove view", "a vCPU runs on it"));
        }
        state.views.retain(|known| *known != view);
        state.remaps.retain(|(of, _), _| *of != view);
        state.copies.retain(|(of, _), _| *of != view);
        Ok(())
    }
    fn remap(&self, view: ViewId, gfn: Gfn, to: Remap) -> Result<()> {
        let mut page = vec![0; 4096];
        self.inner.memory().read(gfn.gpa().unwrap(), &mut page)?;
        let mut state = self.script.posted()?;
        match to {
            Remap::Copy if state.copies.contains_key(&(view, gfn)) => {}
            Remap::Copy => drop(state.copies.insert((view, gfn), page)),
            _ => drop(state.copies.remove(&(view, gfn))),
        }
        state.remaps.insert((view, gfn), to);
        Ok(())
    }
    fn switch(&self, vcpu: Option<VcpuId>, view: ViewId) -> Result<()> {
        let all = vcpu.map_or(0..2, |vcpu| vcpu.0..vcpu.0 + 1);
        self.script.posted()?.current.extend(all.map(|vcpu| (vcpu, view)));
        Ok(())
    }
    fn current(&self, vcpu: VcpuId) -> Result<ViewId> {
        Ok(self.script.view(vcpu.0))
    }
    fn read(&self, view: ViewId, gpa: Gpa, buf: &mut [u8]) -> Result<usize> {
        let (gfn, at) = frame(gpa);
        assert!(at + buf.len() <= 4096, "within one frame");
        let state = self.script.posted()?;
        if let Some(copy) = state.copies.get(&(view, gfn)) {
            buf.copy_from_slice(&copy[at..at + buf.len()]);
            return Ok(buf.len());
        }
        self.inner.memory().read(shown(&state, view, gfn, at), buf)
    }
    fn write(&self, view: ViewId, gpa: Gpa, data: &[u8]) -> Result<usize> {
        let (gfn, at) = frame(gpa);
        assert!(at + data.len() <= 4096, "within one frame");
        let mut state = self.script.posted()?;
        if let Some(copy) = state.copies.get_mut(&(view, gfn)) {
            copy[at..at + data.len()].copy_from_slice(data);
            return Ok(data.len());
        }
        self.inner.memory().write(shown(&state, view, gfn, at), data)
    }
}
