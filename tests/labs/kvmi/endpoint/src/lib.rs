//! The hypervisor's side of KVMI, served over the built-in machine: what a host with KVM-VMI's kernel and QEMU is to an
//! introspector. docs/kvmi.md tells where the two differ.

pub mod armed;
pub mod commands;
pub mod frames;
pub mod layout;
pub mod put_off;
pub mod raise;
pub mod reply;
pub mod session;
pub mod state;
pub mod views;
pub mod wire;
