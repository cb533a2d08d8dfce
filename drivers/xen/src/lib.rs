//! Xen domains, HVM, PVH and PV, through Xen's own libraries. The libraries are behind the feature `libxen`; all else is here
//! in every build, over traits that act like Xen.

mod again;
mod driver;
mod error;
pub mod events;
mod execution;
pub mod hypervisor;
mod injection;
mod memory;
mod owner;
pub mod pv;
pub mod recover;
pub mod registers;
mod source;
mod step;
#[cfg(test)]
mod tests;
mod views;
mod world;

#[cfg(feature = "libxen")]
mod host;
#[cfg(feature = "libxen")]
mod sys;

pub use driver::{BUDGET, Opening, open_domain};
#[cfg(feature = "libxen")]
pub use host::{checks, list, open, recover};
pub use source::Target;

/// Parsers of what Xen gives, for the fuzz targets of tests/fuzz; nothing else outside this crate uses them.
#[doc(hidden)]
pub mod fuzz {
    pub use crate::events::decode;
    pub use crate::registers::{convert, msrs};
}
#[cfg(feature = "libxen")]
#[doc(hidden)]
pub use sys::frames;
