//! `views/NAME/remap` and `views/NAME/mem`: what a view shows.

use vmtree_api::views::{Remap, Views};
use vmtree_api::{Gfn, PAGE_SIZE, ViewId};

use super::Ctx;
use super::row::{Bytes, Work};
use crate::error::FsResult;
use crate::memory::ViewMemory;
use crate::text::{remap, text_of};

/// The frames that this view shows differently.
pub fn show(ctx: &Ctx<'_>) -> FsResult<Vec<u8>> {
    let view = ctx.tree.views.at(ctx.place)?;
    let lines: Vec<_> = view.remaps.into_iter().collect();
    Ok(remap::print(&lines).into_bytes())
}

/// Changes them, all that is written or nothing.
pub fn store(ctx: &Ctx<'_>, data: &[u8]) -> FsResult<()> {
    let changes = remap::parse(text_of(data)?)?;
    let tree = ctx.tree;
    let _changing = tree.views.change();
    let view = tree.views.at(ctx.place)?;
    let views = tree.driver.views()?;
    let mut now = view.remaps.clone();
    let mut undo: Vec<Undo> = Vec::new();
    for (gfn, to) in changes {
        let before = now.get(&gfn).copied().unwrap_or(Remap::None);
        let changed = Undo::of(views, view.id, gfn, before, to).and_then(|step| {
            views.remap(view.id, gfn, to)?;
            Ok(step)
        });
        match changed {
            Ok(step) => undo.push(step),
            Err(error) => {
                undo.into_iter().rev().for_each(|step| step.undo(views, view.id));
                return Err(error.into());
            }
        }
        match to {
            Remap::None => now.remove(&gfn),
            to => now.insert(gfn, to),
        };
    }
    tree.views.set_remaps(view.item, now);
    Ok(())
}

/// What takes one change back.
struct Undo {
    gfn: Gfn,
    before: Remap,
    /// What a private copy held that the change drops.
    copy: Option<Vec<u8>>,
}

impl Undo {
    fn of(views: &dyn Views, view: ViewId, gfn: Gfn, before: Remap, to: Remap) -> vmtree_api::Result<Self> {
        let mut copy = None;
        if let (Remap::Copy, true, Some(gpa)) = (before, to != Remap::Copy, gfn.gpa()) {
            let mut page = vec![0; PAGE_SIZE as usize];
            let got = views.read(view, gpa, &mut page)?;
            page.truncate(got);
            copy = Some(page);
        }
        Ok(Self { gfn, before, copy })
    }

    fn undo(self, views: &dyn Views, view: ViewId) {
        let mut done = views.remap(view, self.gfn, self.before);
        if let (Ok(()), Some(page), Some(gpa)) = (&done, self.copy, self.gfn.gpa()) {
            done = views.write(view, gpa, &page).map(drop);
        }
        if let Err(error) = done {
            log::warn!("a change of frame {:#x} could not be taken back: {error}", self.gfn.0);
        }
    }
}

/// The file `views/NAME/mem`.
pub struct ViewFile;

fn memory<'a>(ctx: &Ctx<'a>) -> FsResult<ViewMemory<'a>> {
    let view = ctx.tree.views.at(ctx.place)?;
    Ok(ViewMemory::new(&ctx.tree.memory, ctx.tree.driver().views()?, view.id))
}

impl Bytes for ViewFile {
    fn size(&self, ctx: &Ctx<'_>) -> u64 {
        ctx.tree.memory.map().ram_end()
    }

    fn allocated(&self, ctx: &Ctx<'_>) -> u64 {
        ctx.tree.memory.map().ram_bytes()
    }

    fn work(&self) -> Work {
        Work::Posted
    }

    fn read(&self, ctx: &Ctx<'_>, offset: u64, len: usize, take: &mut dyn FnMut(&[u8])) -> FsResult<()> {
        memory(ctx)?.read(offset, len, take)
    }

    fn write(&self, ctx: &Ctx<'_>, offset: u64, data: &[u8]) -> FsResult<usize> {
        memory(ctx)?.write(offset, data)
    }

    fn seek(&self, ctx: &Ctx<'_>, offset: u64, data: bool) -> FsResult<u64> {
        ctx.tree.memory.seek(offset, data)
    }
}
