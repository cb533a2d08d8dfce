//! Events, by the ring of Xen's monitor.

mod answer;
mod arm;
mod armed;
mod code;
pub mod decode;
mod dry;
mod emulate;
pub mod engine;
mod fence;
mod guarded;
pub mod offers;
pub mod out;
mod ports;
pub mod queue;
mod settle;
pub mod source;
pub mod table;
#[cfg(test)]
mod table_tests;
mod touched;
mod unemulated;
pub mod window;
pub mod wire;
