//! Events of a QEMU that has vmtree's plugin loaded: its agent, reached by a socket.

mod connect;
mod events;
mod line;
mod offers;
mod words;

pub use connect::connect;
pub use events::Events;
