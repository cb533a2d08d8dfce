//! EPT views.

use vmtree_api::views::{Remap, Views};
use vmtree_api::{ErrorKind, Gfn, Gpa, VcpuId, ViewId};

use crate::commands::{Done, Host};
use crate::frames;
use crate::wire::{BadSize, Fields, error, id};

const PAGE: u64 = 4096;

fn number(failure: &vmtree_api::Error) -> i32 {
    match failure.kind() {
        ErrorKind::NoSpace => error::NOMEM,
        ErrorKind::Busy => error::BUSY,
        _ => error::INVAL,
    }
}

fn done(result: vmtree_api::Result<()>) -> Done {
    Ok(result.map(|()| Vec::new()).map_err(|failure| number(&failure)))
}

fn with_view(view: u16) -> Vec<u8> {
    u64::from(view).to_le_bytes().to_vec()
}

/// CREATE_EPT_VIEW and DESTROY_EPT_VIEW.
///
/// # Errors
/// A bad size.
pub fn of_vm(host: &mut Host<'_>, command: u16, mut fields: Fields<'_>) -> Done {
    let driver = host.driver;
    let Ok(views) = driver.views() else { return Ok(Err(error::OPNOTSUPP)) };
    if command == id::CREATE_EPT_VIEW {
        fields.end()?;
        return Ok(match views.create() {
            Ok(view) => {
                host.state.views.push(view.0);
                Ok(with_view(view.0 as u16))
            }
            Err(failure) => Err(number(&failure)),
        });
    }
    let view = fields.number(8)? as u32;
    fields.end()?;
    let gone = views.destroy(ViewId(view));
    if gone.is_ok() {
        host.state.views.retain(|is| *is != view);
        host.state.permissions.forget(view);
        for frame in host.state.frames.values_mut() {
            frame.shown = frame.shown.filter(|(of, _)| *of != view);
        }
    }
    done(gone)
}

/// The commands for views that go to a vCPU.
///
/// # Errors
/// A bad size.
pub fn of_vcpu(host: &mut Host<'_>, command: u16, vcpu: usize, mut fields: Fields<'_>) -> Done {
    let driver = host.driver;
    let Ok(views) = driver.views() else { return Ok(Err(error::OPNOTSUPP)) };
    let vcpu = VcpuId(vcpu as u32);
    match command {
        id::GET_EPT_VIEW => {
            fields.end()?;
            Ok(views.current(vcpu).map(|view| with_view(view.0 as u16)).map_err(|failure| number(&failure)))
        }
        id::SWITCH_EPT_VIEW => {
            let view = fields.number(8)? as u32;
            fields.end()?;
            done(views.switch(Some(vcpu), ViewId(view)))
        }
        id::CHANGE_GFN => {
            let (view, old, new) = (fields.number(8)? as u32, fields.number(8)?, fields.number(8)?);
            fields.end()?;
            change(host, views, view, old, new)
        }
        id::ALLOC_GFN | id::FREE_GFN => {
            let gfn = fields.number(8)?;
            fields.end()?;
            let worked =
                if command == id::ALLOC_GFN { frames::alloc(host, gfn) } else { frames::free(host, gfn) };
            Ok(if worked { Ok(Vec::new()) } else { Err(error::INVAL) })
        }
        _ => Err(BadSize),
    }
}

/// Shows another frame in the place of one: of the guest, or one that was allocated.
fn change(host: &mut Host<'_>, views: &dyn Views, view: u32, old: u64, new: u64) -> Done {
    let whole = || views.read(ViewId(view), Gpa(old.wrapping_mul(PAGE)), &mut [0; PAGE as usize]);
    // A frame that was shown here keeps what it holds.
    if let Some(frame) = host.state.frames.values_mut().find(|frame| frame.shown == Some((view, old))) {
        let mut bytes = vec![0; PAGE as usize];
        if views.read(ViewId(view), Gpa(old * PAGE), &mut bytes).is_ok() {
            frame.bytes = bytes;
        }
        frame.shown = None;
    }
    let Some(frame) = host.state.frames.get_mut(&new) else {
        let to = if new == old { Remap::None } else { Remap::Frame(Gfn(new)) };
        return done(views.remap(ViewId(view), Gfn(old), to));
    };
    if frame.shown.is_some() {
        // The machine has a private copy at one place only.
        return Ok(Err(error::BUSY));
    }
    let shown = views
        .remap(ViewId(view), Gfn(old), Remap::Copy)
        .and_then(|()| views.write(ViewId(view), Gpa(old * PAGE), &frame.bytes))
        .and_then(|_| whole());
    if shown.is_ok() {
        frame.shown = Some((view, old));
    }
    done(shown.map(drop))
}
