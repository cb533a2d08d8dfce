//! KVM with the KVM-VMI patches, introspected over KVMI: QEMU connects to a socket of ours, and the kernel answers there.
//!
//! Crate kvmi speaks the protocol by libkvmi, which no distribution has. So all that needs it is behind the feature
//! `libkvmi`; the rest builds and is tested anywhere, over the small traits of `port`.

#![cfg_attr(not(feature = "libkvmi"), allow(dead_code, reason = "only a connection uses it"))]

mod convert;
mod core;
mod doctor;
mod driver;
mod events;
mod failure;
mod handles;
mod hello;
mod memory;
mod offers;
mod options;
mod owner;
mod permissions;
mod port;
mod queue;
#[cfg(any(test, feature = "fuzzing"))]
mod script;
#[cfg(feature = "libkvmi")]
mod sys;
mod table;
mod vm;

use std::sync::Arc;

use vmtree_api::{Driver, Host, Result, Source};

pub use doctor::checks;

/// What an introspected host can send, for the fuzz targets of tests/fuzz; nothing else outside this crate uses it.
#[doc(hidden)]
#[cfg(feature = "fuzzing")]
pub mod fuzz {
    pub use crate::hello::parse as hello;
    pub use crate::script::session;
}

/// Waits for QEMU at the socket that `source` names, `kvmi:/tmp/introspector[,wait=SECONDS][,mode=OCTAL]`, and opens its VM.
///
/// # Errors
/// A bad source; [`vmtree_api::ErrorKind::TimedOut`] if no QEMU comes, with what to start it with;
/// [`vmtree_api::ErrorKind::Unsupported`] in a vmtree that was built without libkvmi.
pub fn open(source: Source, host: Arc<dyn Host>) -> Result<Box<dyn Driver>> {
    let options = options::Options::take(source)?;
    connect(options, host)
}

#[cfg(feature = "libkvmi")]
fn connect(options: options::Options, host: Arc<dyn Host>) -> Result<Box<dyn Driver>> {
    let (connect, wake) = sys::connector(options)?;
    Ok(Box::new(driver::Kvmi::open(connect, wake, host)?))
}

#[cfg(not(feature = "libkvmi"))]
fn connect(_options: options::Options, _host: Arc<dyn Host>) -> Result<Box<dyn Driver>> {
    let why = format!("{}; {}", doctor::WITHOUT, doctor::CURE);
    Err(vmtree_api::Error::new(vmtree_api::ErrorKind::Unsupported, "open kvmi", why))
}
