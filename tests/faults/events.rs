//! Events, views and injection of the driver that goes wrong.

use std::time::Duration;

use vmtree_api::events::{EventOffer, EventSource, Held, Inject, Injection, Verdict, Wanted};
use vmtree_api::views::{Remap, Views};
use vmtree_api::*;

use crate::driver::{Call, Counted, Faults, Faulty};

impl EventSource for Faulty {
    fn offers(&self) -> &[EventOffer] {
        self.inner.events().unwrap().offers()
    }
    fn watch(&self, wanted: &Wanted) -> Result<()> {
        self.faults.call(true)?;
        self.inner.events().unwrap().watch(wanted)?;
        self.faults.made().wanted = wanted.clone();
        Ok(())
    }
    fn next(&self, timeout: Duration) -> Result<Option<Held>> {
        self.faults.count(Call::Next, false)?;
        let held = self.inner.events().unwrap().next(timeout)?;
        Ok(held.map(|held| wrap(held, self.faults.clone())))
    }
}

/// A held event whose answers may fail. Where all fail, it goes on when it is dropped.
fn wrap(held: Held, faults: Faults) -> Held {
    if !held.waits() {
        return held;
    }
    let (event, mut inner) = (*held.event(), Some((held, Counted::new(&faults))));
    Held::new(event, move |verdict: &Verdict| {
        faults.count(Call::Reply, false)?;
        let (held, counted) = inner.take().expect("answered once");
        held.answer(verdict).map_err(|refused| {
            inner = refused.held.map(|held| (held, counted));
            refused.error
        })
    })
}

impl Injection for Faulty {
    fn inject(&self, vcpu: VcpuId, what: Inject) -> Result<()> {
        self.faults.call(true)?;
        self.inner.injection().unwrap().inject(vcpu, what)
    }
}

impl Faulty {
    fn below(&self) -> Result<&dyn Views> {
        self.faults.call(true)?;
        Ok(self.inner.views().unwrap())
    }
}

impl Views for Faulty {
    fn create(&self) -> Result<ViewId> {
        let view = self.below()?.create()?;
        self.faults.made().views.insert(view);
        Ok(view)
    }
    fn destroy(&self, view: ViewId) -> Result<()> {
        self.below()?.destroy(view)?;
        self.faults.made().views.remove(&view);
        Ok(())
    }
    fn remap(&self, view: ViewId, gfn: Gfn, to: Remap) -> Result<()> {
        self.below()?.remap(view, gfn, to)
    }
    fn switch(&self, vcpu: Option<VcpuId>, view: ViewId) -> Result<()> {
        self.below()?.switch(vcpu, view)
    }
    fn current(&self, vcpu: VcpuId) -> Result<ViewId> {
        self.faults.count(Call::Look, false)?;
        self.inner.views().unwrap().current(vcpu)
    }
    fn read(&self, view: ViewId, gpa: Gpa, buf: &mut [u8]) -> Result<usize> {
        self.below()?.read(view, gpa, buf)
    }
    fn write(&self, view: ViewId, gpa: Gpa, data: &[u8]) -> Result<usize> {
        self.below()?.write(view, gpa, data)
    }
}
