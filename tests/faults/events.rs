//! The event side of the driver that goes wrong. Taking events is not counted: it happens when it happens.

use std::time::Duration;

use vmtree_api::events::{EventOffer, EventSource, Held, Inject, Injection, Wanted};
use vmtree_api::views::{Remap, Views};
use vmtree_api::*;

use crate::driver::Faulty;

impl EventSource for Faulty {
    fn offers(&self) -> &[EventOffer] {
        self.inner.events().unwrap().offers()
    }
    fn watch(&self, wanted: &Wanted) -> Result<()> {
        self.faults.call(true)?;
        self.inner.events().unwrap().watch(wanted)
    }
    fn next(&self, timeout: Duration) -> Result<Option<Held>> {
        self.inner.events().unwrap().next(timeout)
    }
}

impl Injection for Faulty {
    fn inject(&self, vcpu: VcpuId, what: Inject) -> Result<()> {
        self.faults.call(true)?;
        self.inner.injection().unwrap().inject(vcpu, what)
    }
}

impl Views for Faulty {
    fn create(&self) -> Result<ViewId> {
        self.faults.call(true)?;
        self.inner.views().unwrap().create()
    }
    fn destroy(&self, view: ViewId) -> Result<()> {
        self.faults.call(true)?;
        self.inner.views().unwrap().destroy(view)
    }
    fn remap(&self, view: ViewId, gfn: Gfn, to: Remap) -> Result<()> {
        self.faults.call(true)?;
        self.inner.views().unwrap().remap(view, gfn, to)
    }
    fn switch(&self, vcpu: Option<VcpuId>, view: ViewId) -> Result<()> {
        self.faults.call(true)?;
        self.inner.views().unwrap().switch(vcpu, view)
    }
    fn current(&self, vcpu: VcpuId) -> Result<ViewId> {
        self.inner.views().unwrap().current(vcpu)
    }
    fn read(&self, view: ViewId, gpa: Gpa, buf: &mut [u8]) -> Result<usize> {
        self.faults.call(true)?;
        self.inner.views().unwrap().read(view, gpa, buf)
    }
    fn write(&self, view: ViewId, gpa: Gpa, data: &[u8]) -> Result<usize> {
        self.faults.call(true)?;
        self.inner.views().unwrap().write(view, gpa, data)
    }
}
