//! `views/NAME/access`: the SLAT permissions of a view.

use super::Ctx;
use crate::error::FsResult;
use crate::text::{access, text_of};

/// What differs from all rights.
pub fn show(ctx: &Ctx<'_>) -> FsResult<Vec<u8>> {
    let view = ctx.tree.views.at(ctx.place)?;
    Ok(access::print(&ctx.tree.hub.access(view.id)).into_bytes())
}

/// Changes it, all that is written or nothing.
pub fn store(ctx: &Ctx<'_>, data: &[u8]) -> FsResult<()> {
    let changes = access::parse(text_of(data)?)?;
    let _changing = ctx.tree.views.change();
    let view = ctx.tree.views.at(ctx.place)?;
    ctx.tree.hub.set_access(view.id, &changes)
}
