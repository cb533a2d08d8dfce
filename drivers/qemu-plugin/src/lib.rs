//! vmtree's agent in stock QEMU: a TCG plugin that tells vmtree of hardware events and does what is answered to them.
//!
//! `-plugin libvmtree_qemu.so,socket=PATH` loads it; it listens at PATH for one vmtree at a time. One file serves the plugin
//! interface of QEMU 10.0 (version 4), 10.2 (5), 11.0 (6) and 11.1 (7); what a version lacks is told in the offers.
//!
//! A watched instruction has a callback from its translation on, whether something is wanted or not: such instructions
//! are rare, and turning them on is one store. Fetches of a page, accesses to memory and single steps have callbacks only
//! while they are wanted: turning those on or off makes QEMU translate anew.

mod act;
mod args;
mod armed;
mod decode;
mod flags;
mod flush;
mod hooks;
mod idt;
mod interrupts;
mod listen;
mod offers;
mod plugin;
mod sense;
mod sys;
mod tracked;
mod vcpu;
