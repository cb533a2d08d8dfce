//! SLAT views from outside.

use std::sync::Arc;

use vmtree_api::views::{Remap, Views};
use vmtree_api::{Error, ErrorKind, Gfn, Gpa, Memory, Result, VcpuId, ViewId};

use crate::machine::{Machine, State, Visit};
use crate::slat::COPY;

/// The views of a machine.
pub struct AllViews(pub Arc<Machine>);

fn default_view(op: &'static str, why: &str) -> Error {
    Error::new(ErrorKind::Invalid, op, format!("view 0 is the default view: {why}"))
}

/// Where a frame lies, as users write it.
fn at(gfn: Gfn) -> String {
    gfn.gpa().map_or_else(|| format!("frame {:#x}", gfn.0), |gpa| gpa.to_string())
}

/// Whether a frame is RAM.
fn frame(state: &State, op: &'static str, gfn: Gfn) -> Result<()> {
    match gfn.gpa() {
        Some(gpa) if state.world.ram.holds(gpa.0, 4096) => Ok(()),
        _ => Err(Error::new(
            ErrorKind::NotFound,
            op,
            format!("{} is not RAM; mem.map shows where there is", at(gfn)),
        )),
    }
}

/// The place of bytes inside one frame of RAM.
fn place(visit: &Visit<'_>, op: &'static str, view: ViewId, gpa: Gpa, bytes: usize) -> Result<u64> {
    visit.world.slat.known(op, view)?;
    if gpa.page_offset() + bytes as u64 > 4096 {
        return Err(Error::new(
            ErrorKind::Invalid,
            op,
            format!("{bytes} bytes at {gpa} are not in one frame"),
        ));
    }
    frame(visit, op, gpa.gfn())?;
    Ok(visit.world.slat.place(view.0, gpa.0))
}

impl Views for AllViews {
    fn create(&self) -> Result<ViewId> {
        self.0.visit("create view")?.world.slat.create()
    }

    fn destroy(&self, view: ViewId) -> Result<()> {
        const OP: &str = "remove view";
        let mut visit = self.0.visit(OP)?;
        visit.world.slat.known(OP, view)?;
        if view.0 == 0 {
            return Err(default_view(OP, "it stays"));
        }
        let on = |trap: &crate::cpu::grants::Trap| trap.view == view.0 || trap.back == Some(view.0);
        if let Some(vcpu) = visit.vcpus.iter().find(|vcpu| on(&vcpu.trap)) {
            let why = format!("vCPU {} runs on view {}; switch it first", vcpu.id, view.0);
            return Err(Error::new(ErrorKind::Busy, OP, why));
        }
        visit.world.slat.destroy(view);
        Ok(())
    }

    fn remap(&self, view: ViewId, gfn: Gfn, to: Remap) -> Result<()> {
        const OP: &str = "remap";
        let mut visit = self.0.visit(OP)?;
        visit.world.slat.known(OP, view)?;
        if view.0 == 0 {
            return Err(default_view(OP, "it shows the guest's own frames"));
        }
        frame(&visit, OP, gfn)?;
        if let Remap::Frame(other) = to {
            frame(&visit, OP, other)?;
        }
        let State { vcpus, world, .. } = &mut *visit;
        let ram = world.ram.clone();
        world.slat.remap(view, gfn, to, |slat, now, page| {
            let _ = ram.load(now, page) || slat.load(now, page);
        })?;
        vcpus.iter_mut().filter(|vcpu| vcpu.trap.view == view.0).for_each(|vcpu| vcpu.tlb.flush());
        visit.changed();
        Ok(())
    }

    fn switch(&self, vcpu: Option<VcpuId>, view: ViewId) -> Result<()> {
        const OP: &str = "switch view";
        let mut visit = self.0.visit(OP)?;
        visit.world.slat.known(OP, view)?;
        let only = vcpu.map(|vcpu| visit.index(OP, vcpu)).transpose()?;
        let meant = visit.vcpus.iter_mut().filter(|vcpu| only.is_none_or(|only| only == vcpu.id));
        for vcpu in meant {
            vcpu.trap.back = None;
            vcpu.switch(view.0);
        }
        visit.changed();
        Ok(())
    }

    fn current(&self, vcpu: VcpuId) -> Result<ViewId> {
        const OP: &str = "read view";
        let visit = self.0.visit(OP)?;
        let index = visit.index(OP, vcpu)?;
        Ok(ViewId(visit.vcpus[index].trap.view))
    }

    fn read(&self, view: ViewId, gpa: Gpa, buf: &mut [u8]) -> Result<usize> {
        const OP: &str = "read view";
        let visit = self.0.visit(OP)?;
        let at = place(&visit, OP, view, gpa, buf.len())?;
        if at & COPY == 0 {
            return visit.world.ram.read(Gpa(at), buf);
        }
        Ok(if visit.world.slat.load(at, buf) { buf.len() } else { 0 })
    }

    fn write(&self, view: ViewId, gpa: Gpa, data: &[u8]) -> Result<usize> {
        const OP: &str = "write view";
        let mut visit = self.0.visit(OP)?;
        let at = place(&visit, OP, view, gpa, data.len())?;
        if at & COPY == 0 {
            return visit.world.ram.write(Gpa(at), data);
        }
        Ok(if visit.world.slat.store(at, data) { data.len() } else { 0 })
    }
}
