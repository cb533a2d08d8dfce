//! QEMU's gdbstub, spoken to by its own protocol: what the monitor can't do, it can.

pub mod door;
mod packet;
pub mod stub;
mod target;
mod wire;

#[cfg(test)]
pub use packet::to_hex as hex;
