//! QEMU's gdbstub, spoken to by its own protocol: what the monitor can't do, it can.

pub mod door;
pub mod folder;
pub mod packet;
pub mod stub;
pub mod target;
mod wire;

#[cfg(test)]
pub use packet::to_hex as hex;
