//! SLAT permissions and views: alternate ones where the domain may have them, else rights on its only one.

pub mod book;
mod change;
mod close;
mod pages;
pub mod rules;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vmtree_api::views::{Remap, Views};
use vmtree_api::{Error, ErrorKind, Gfn, Gpa, PAGE_SIZE, Result, VcpuId, ViewId};

use crate::error::no_vcpu;
use crate::memory::DomainMemory;
use crate::owner::Owner;
use crate::world::World;

/// The views of a domain.
pub struct DomainViews {
    owner: Arc<Owner>,
    memory: Arc<DomainMemory>,
    current: Arc<[AtomicU32]>,
}

impl DomainViews {
    /// Of a domain; `current` has the view of each vCPU.
    #[must_use]
    pub fn new(owner: Arc<Owner>, memory: Arc<DomainMemory>, current: Arc<[AtomicU32]>) -> Self {
        Self { owner, memory, current }
    }

    /// The address at which the memory is that a view shows.
    fn place(&self, op: &'static str, view: ViewId, gpa: Gpa) -> Result<u64> {
        let frame = self.owner.ask(op, move |world| {
            world.known(op, view)?;
            Ok(world.views.frame(view, gpa.gfn().0))
        })?;
        Ok(frame * PAGE_SIZE + gpa.page_offset())
    }
}

impl World {
    /// Whether there is such a view.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn known(&self, op: &'static str, view: ViewId) -> Result<()> {
        if self.views.views.contains_key(&view.0) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::NotFound, op, format!("there is no view {}", view.0)))
    }
}

fn unread(op: &'static str, gpa: Gpa, error: std::io::Error) -> Error {
    Error::new(ErrorKind::NotFound, op, format!("there is no memory at {gpa} in this view")).caused_by(error)
}

impl Views for DomainViews {
    fn create(&self) -> Result<ViewId> {
        self.owner.ask("create view", World::create_view)
    }

    fn destroy(&self, view: ViewId) -> Result<()> {
        self.owner.ask("destroy view", move |world| world.destroy_view(view))
    }

    fn remap(&self, view: ViewId, gfn: Gfn, to: Remap) -> Result<()> {
        self.owner.ask("remap", move |world| world.remap(view, gfn.0, to))
    }

    fn switch(&self, vcpu: Option<VcpuId>, view: ViewId) -> Result<()> {
        self.owner.ask("switch view", move |world| world.switch_view(vcpu, view))
    }

    fn current(&self, vcpu: VcpuId) -> Result<ViewId> {
        let current = self.current.get(vcpu.0 as usize);
        let current = current.ok_or_else(|| no_vcpu("read view", vcpu.0, self.current.len() as u32))?;
        Ok(ViewId(current.load(Ordering::Acquire)))
    }

    fn read(&self, view: ViewId, gpa: Gpa, buf: &mut [u8]) -> Result<usize> {
        const OP: &str = "read view";
        let at = self.place(OP, view, gpa)?;
        self.memory.mappings().read(at, buf).map_err(|error| unread(OP, gpa, error))
    }

    fn write(&self, view: ViewId, gpa: Gpa, data: &[u8]) -> Result<usize> {
        const OP: &str = "write view";
        let at = self.place(OP, view, gpa)?;
        self.memory.mappings().write(at, data).map_err(|error| unread(OP, gpa, error))
    }
}
