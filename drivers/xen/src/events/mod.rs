//! Events, by the ring of Xen's monitor.

mod answer;
mod arm;
mod armed;
mod code;
pub mod decode;
pub mod engine;
pub mod offers;
pub mod queue;
mod settle;
pub mod source;
pub mod table;
pub mod wire;
