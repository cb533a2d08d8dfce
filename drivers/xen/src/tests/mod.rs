//! The driver over a hypervisor that only exists here.

mod away;
mod events;
mod fake;
mod fake_slat;
mod going;
mod lost;
pub mod ram;
mod slots;
mod undo;

pub use ram::Ram;
