//! The protocol between vmtree and its code inside a monitor's process (the agent), and the engine of both ends.
//!
//! Bytes on a stream, frame by frame, little-endian: `docs/agent.md` has them one by one. A [`Line`] carries the bytes,
//! on Unix a [`Socket`]; nothing else here knows of an operating system. No side trusts the other: a frame is checked whole before
//! any of it is used, and a peer that breaks the protocol is let go of.
//!
//! An agent whose client is gone answers all that is held with [`Verdict::Continue`] and disarms.

pub mod client;
mod code;
mod event;
pub mod frame;
mod inlet;
mod kinds;
mod line;
mod lock;
mod message;
mod offer;
pub mod server;
#[cfg(unix)]
mod socket;
mod verdict;
mod wanted;

pub use code::Malformed;
pub use event::{EVENT_BYTES, Event, flag};
pub use kinds::{Action, Code, Kind, Reg, Way};
pub use line::Line;
pub use message::{Hello, MAGIC, ToAgent, ToClient, VERSION};
pub use offer::{Offer, Subject};
#[cfg(unix)]
pub use socket::Socket;
pub use verdict::{Inject, Verdict};
pub use wanted::{Rule, Wanted, Watch};
