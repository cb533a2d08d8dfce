//! Xen itself, by its own libraries (libxenctrl, libxencall, libxenevtchn, libxenforeignmemory) and xenstore.
//!
//! The `-sys` crates are used, not the safe crates above them: those pass `xc_monitor_write_ctrlreg` five of its
//! seven arguments, don't tell errno, and look for the libraries by the names that only a development package has.
#![allow(unsafe_code, reason = "this module calls C")]

mod call;
mod context;
mod domain;
mod frames;
mod handle;
mod m2p;
mod monitor;
mod pages;
mod paravirtual;
mod ring;
mod slat;
pub mod store;

use std::io::{Error, Result};
use std::sync::Arc;

use crate::hypervisor::{DomainInfo, Frames, Hypervisor, MachineTable};
use call::Call;
use handle::Handle;
use ring::{Bell, Ring};

/// Xen, for one domain. Not `Send`: it lives on the owner thread.
struct Xen {
    handle: Handle,
    call: Call,
    domid: u32,
    ring: Option<Ring>,
    bell: Arc<Bell>,
}

/// Opens Xen for this domain.
///
/// # Errors
/// As the libraries say; mostly that /dev/xen/privcmd is not there, or not for this user.
pub fn open(domid: u32) -> Result<Box<dyn Hypervisor>> {
    let bell = Arc::new(Bell::new()?);
    Ok(Box::new(Xen { handle: Handle::open()?, call: Call::open()?, domid, ring: None, bell }))
}

/// The way to the memory of this domain.
///
/// # Errors
/// As [`open`].
pub fn frames(domid: u32) -> Result<Arc<dyn Frames>> {
    Ok(Arc::new(frames::Foreign::open(domid, false)?))
}

/// The machine's frames of this PV domain.
///
/// # Errors
/// As [`open`].
pub fn machine_frames(domid: u32) -> Result<Arc<dyn Frames>> {
    Ok(Arc::new(frames::Foreign::open(domid, true)?))
}

/// Xen's table of the machine's frames.
///
/// # Errors
/// As [`open`].
pub fn m2p() -> Result<Arc<dyn MachineTable>> {
    Ok(Arc::new(m2p::Table::open()?))
}

/// All domains of the host, dom0 included.
///
/// # Errors
/// As [`open`].
pub fn domains() -> Result<Vec<DomainInfo>> {
    domain::all(&Handle::open()?)
}

/// The version of Xen that runs.
///
/// # Errors
/// As [`open`].
pub fn version() -> Result<String> {
    Handle::open()?.version()
}

/// What a library's call returned: negative is an error, told by errno.
fn done(code: i32) -> Result<u32> {
    u32::try_from(code).map_err(|_| Error::last_os_error())
}
