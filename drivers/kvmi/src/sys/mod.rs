//! The real thing: crate kvmi, libkvmi under it, and the sockets between QEMU and them.

#![allow(unsafe_code, reason = "libkvmi is C")]

mod call;
mod copy;
mod event;
mod join;
mod link;
mod meet;
mod wake;

use std::sync::Arc;

use vmtree_api::Result;

use crate::driver::Connect;
use crate::options::Options;
use crate::port::Wake;

/// Waits for QEMU, and returns what then makes the connection on the owner thread.
///
/// # Errors
/// No QEMU came, or no socket can be made there.
pub fn connector(options: Options) -> Result<(Connect, Arc<dyn Wake>)> {
    let wake = Arc::new(wake::Doorbell::new()?);
    let (guest, hello) = meet::meet(&options)?;
    let bell = Arc::clone(&wake);
    let connect: Connect = Box::new(move || {
        let parsed = crate::hello::parse(&hello)?;
        let link = join::join(guest, &hello, bell)?;
        Ok((Box::new(link) as _, parsed))
    });
    Ok((connect, wake))
}

/// Whether libkvmi can be loaded.
///
/// # Errors
/// What the loader says.
pub fn loaded() -> std::result::Result<(), String> {
    kvmi::create_kvmi().map(drop).map_err(|error| error.to_string())
}
