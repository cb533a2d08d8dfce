//! The protocol between vmtree and its code inside a monitor's process (the agent), and the engine of both ends.
//!
//! Bytes on a stream, frame by frame, little-endian: `docs/agent.md` has them one by one. Nothing here knows of sockets or
//! of an operating system: a [`Line`] carries the bytes. No side trusts the other: a frame is checked whole before
//! any of it is used, and a peer that breaks the protocol is let go of.
//!
//! An agent whose client is gone answers all that is held with [`Verdict::Continue`] and disarms.

pub mod client;
mod code;
mod event;
pub mod frame;
mod kinds;
mod line;
mod message;
mod offer;
pub mod server;
mod verdict;
mod wanted;

pub use code::Malformed;
pub use event::{EVENT_BYTES, Event, flag};
pub use kinds::{Action, Code, Kind, Reg, Way};
pub use line::Line;
pub use message::{Hello, MAGIC, ToAgent, ToClient, VERSION};
pub use offer::{Offer, Subject};
pub use verdict::{Inject, Verdict};
pub use wanted::{Rule, Wanted, Watch};
