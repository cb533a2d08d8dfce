//! The driver over a hypervisor that only exists here.

mod events;
mod fake;
pub mod ram;
mod undo;

pub use ram::Ram;
