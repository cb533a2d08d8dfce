//! The driver over a hypervisor that only exists here.

mod away;
mod copies;
mod events;
mod fake;
mod fake_pv;
mod fake_slat;
mod faults;
mod going;
mod lost;
mod ports;
mod pv;
mod pv_tables;
pub mod ram;
mod slots;
mod undo;
mod window;

pub use ram::Ram;
