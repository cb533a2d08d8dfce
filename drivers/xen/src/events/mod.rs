//! Events, by the ring of Xen's monitor.

pub mod answers;
mod arm;
mod armed;
pub mod decode;
pub mod engine;
mod fence;
pub mod offers;
pub mod queue;
mod settle;
pub mod source;
pub mod window;
pub mod wire;
