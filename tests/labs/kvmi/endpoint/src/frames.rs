//! Physical memory, and frames outside the guest's map that an introspector has allocated. The built-in machine has such a frame as
//! the private copy of the one frame that shows it.

use vmtree_api::{Gpa, ViewId};

use crate::commands::Host;
use crate::state::Frame;

const PAGE: u64 = 4096;
/// The most frames of one connection.
const MOST: usize = 4096;

/// Reads inside one page; whether there is such a page.
pub fn read(host: &Host<'_>, gpa: u64, buf: &mut [u8]) -> bool {
    let Some(frame) = host.state.frames.get(&(gpa / PAGE)) else {
        return host.driver.memory().read(Gpa(gpa), buf).is_ok_and(|bytes| bytes == buf.len());
    };
    let at = (gpa % PAGE) as usize;
    match frame.shown {
        Some((view, gfn)) => host
            .driver
            .views()
            .is_ok_and(|views| views.read(ViewId(view), Gpa(gfn * PAGE + at as u64), buf).is_ok()),
        None => match frame.bytes.get(at..at + buf.len()) {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                true
            }
            None => false,
        },
    }
}

/// Writes inside one page; whether there is such a page.
pub fn write(host: &mut Host<'_>, gpa: u64, data: &[u8]) -> bool {
    let Some(frame) = host.state.frames.get_mut(&(gpa / PAGE)) else {
        return host.driver.memory().write(Gpa(gpa), data).is_ok_and(|bytes| bytes == data.len());
    };
    let at = (gpa % PAGE) as usize;
    match frame.shown {
        Some((view, gfn)) => host
            .driver
            .views()
            .is_ok_and(|views| views.write(ViewId(view), Gpa(gfn * PAGE + at as u64), data).is_ok()),
        None => match frame.bytes.get_mut(at..at + data.len()) {
            Some(bytes) => {
                bytes.copy_from_slice(data);
                true
            }
            None => false,
        },
    }
}

/// Makes a frame of zeros; whether there is room, and nothing at that number.
pub fn alloc(host: &mut Host<'_>, gfn: u64) -> bool {
    let taken = host.state.frames.contains_key(&gfn)
        || gfn.checked_mul(PAGE).is_none_or(|gpa| host.driver.memory().read(Gpa(gpa), &mut [0]).is_ok());
    if taken || host.state.frames.len() >= MOST {
        return false;
    }
    host.state.frames.insert(gfn, Frame { bytes: vec![0; PAGE as usize], shown: None });
    true
}

/// Forgets a frame that no view shows; whether there was one.
pub fn free(host: &mut Host<'_>, gfn: u64) -> bool {
    host.state.frames.get(&gfn).is_some_and(|frame| frame.shown.is_none())
        && host.state.frames.remove(&gfn).is_some()
}
