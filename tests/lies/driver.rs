//! The built-in machine behind a driver that lies about its events, views and injections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vmtree_api::events::*;
use vmtree_api::views::{Remap, Views};
use vmtree_api::*;

/// What is not true.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lie {
    /// Events are never told of.
    Deaf,
    /// Every second event is not told of.
    Drops,
    /// Events are told of the next instruction.
    WrongRip,
    /// Events are told of another vCPU.
    WrongVcpu,
    /// What an event tells beside the common fields is another.
    WrongDetail,
    /// Whatever is answered, the event takes place as it is.
    Continues,
    /// What is to continue, or to be stepped, is denied.
    Denies,
    /// Events that are only watched are held, and denied.
    Steals,
    /// vCPUs are not held.
    NeverHolds,
    /// SLAT rules are taken, and mean nothing.
    NoRules,
    /// Switches to a view are taken, and mean nothing.
    NoSwitch,
    /// Remaps are taken, and mean nothing.
    NoRemap,
    /// Injections are taken, and nothing comes.
    NoInjection,
}

/// The driver.
pub struct Liar {
    inner: Box<dyn Driver>,
    lie: Lie,
    count: AtomicU64,
}

impl Liar {
    /// Over a built-in machine of two vCPUs.
    pub fn new(lie: Lie) -> Arc<Self> {
        let options = [("ram", "32M"), ("vcpus", "2")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let inner = vmtree_emu::open(Source::new("emu", "", options.to_vec()), Arc::new(NoHost)).unwrap();
        Arc::new(Self { inner, lie, count: AtomicU64::new(0) })
    }

    fn source(&self) -> &dyn EventSource {
        self.inner.events().unwrap()
    }

    fn inner_views(&self) -> &dyn Views {
        self.inner.views().unwrap()
    }

    /// The event as it is told; `None` where it is not.
    fn told(&self, held: Held) -> Option<Held> {
        let nth = self.count.fetch_add(1, Ordering::SeqCst);
        if self.lie == Lie::Deaf || self.lie == Lie::Drops && nth % 2 == 1 {
            return None;
        }
        let mut event = *held.event();
        match self.lie {
            Lie::WrongRip => event.rip += 2,
            Lie::WrongVcpu => event.vcpu = VcpuId(1 - event.vcpu.0),
            Lie::WrongDetail => event.detail = other(event.detail),
            Lie::Steals => {
                let _ = held.answer(&Verdict::Deny);
                return Some(Held::new(event, |_| Ok(())));
            }
            _ => {}
        }
        let (mut inner, lie) = (Some(held), self.lie);
        Some(Held::new(event, move |verdict| {
            let Some(held) = inner.take() else { return Ok(()) };
            held.answer(&lie.instead(verdict)).map_err(|refused| {
                inner = refused.held;
                refused.error
            })
        }))
    }
}

impl Lie {
    /// What is answered instead.
    fn instead(self, verdict: &Verdict) -> Verdict {
        match (self, verdict) {
            (Self::Continues, _) => Verdict::Continue,
            (Self::Denies, Verdict::Continue | Verdict::Step(_)) => Verdict::Deny,
            _ => verdict.clone(),
        }
    }
}

fn other(detail: Detail) -> Detail {
    let moved = |access| match access {
        Move::To { old, new } => Move::To { old, new: new ^ 1 },
        Move::From { value } => Move::From { value: value ^ 1 },
    };
    match detail {
        Detail::Control(access) => Detail::Control(moved(access)),
        Detail::Debug { reg, access } => Detail::Debug { reg, access: moved(access) },
        Detail::Msr { index, access } => Detail::Msr { index, access: moved(access) },
        Detail::Interrupt { vector, error, cr2, .. } => {
            Detail::Interrupt { vector, kind: InterruptType::PrivilegedSoftwareException, error, cr2 }
        }
        Detail::Slat { access, gpa, page_walk, .. } => {
            Detail::Slat { access, gpa, gva: None, page_walk: !page_walk }
        }
        other => other,
    }
}

impl Driver for Liar {
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

impl EventSource for Liar {
    fn offers(&self) -> &[EventOffer] {
        self.source().offers()
    }
    fn watch(&self, wanted: &Wanted) -> Result<()> {
        let mut wanted = wanted.clone();
        match self.lie {
            Lie::NoRules => wanted.rules.clear(),
            Lie::NeverHolds => {
                wanted.watches.iter_mut().for_each(|watch| watch.hold = false);
                wanted.rules.iter_mut().for_each(|rule| rule.hold = false);
            }
            Lie::Steals => wanted.watches.iter_mut().for_each(|watch| watch.hold = true),
            _ => {}
        }
        self.source().watch(&wanted)
    }
    fn next(&self, timeout: Duration) -> Result<Option<Held>> {
        Ok(self.source().next(timeout)?.and_then(|held| self.told(held)))
    }
}

impl Injection for Liar {
    fn inject(&self, vcpu: VcpuId, what: Inject) -> Result<()> {
        match self.lie {
            Lie::NoInjection => Ok(()),
            _ => self.inner.injection().unwrap().inject(vcpu, what),
        }
    }
}

impl Views for Liar {
    fn create(&self) -> Result<ViewId> {
        self.inner_views().create()
    }
    fn destroy(&self, view: ViewId) -> Result<()> {
        self.inner_views().destroy(view)
    }
    fn remap(&self, view: ViewId, gfn: Gfn, to: Remap) -> Result<()> {
        if self.lie == Lie::NoRemap { Ok(()) } else { self.inner_views().remap(view, gfn, to) }
    }
    fn switch(&self, vcpu: Option<VcpuId>, view: ViewId) -> Result<()> {
        if self.lie == Lie::NoSwitch { Ok(()) } else { self.inner_views().switch(vcpu, view) }
    }
    fn current(&self, vcpu: VcpuId) -> Result<ViewId> {
        self.inner_views().current(vcpu)
    }
    fn read(&self, view: ViewId, gpa: Gpa, buf: &mut [u8]) -> Result<usize> {
        self.inner_views().read(view, gpa, buf)
    }
    fn write(&self, view: ViewId, gpa: Gpa, data: &[u8]) -> Result<usize> {
        self.inner_views().write(view, gpa, data)
    }
}
