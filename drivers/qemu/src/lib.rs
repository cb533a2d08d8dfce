//! Stock QEMU, TCG or KVM, found and read from outside: nothing in it is patched. Where its user had it load vmtree's plugin
//! (drivers/qemu-plugin), that one's agent tells of events.
//!
//! The layout of guest memory comes from the QMP monitor. The bytes come from the files behind shared memory
//! backends, or from the memory of the QEMU process where there are none.

mod agent;
mod backing;
mod control;
mod doctor;
mod driver;
mod execution;
mod find;
mod gdb;
mod hmp;
mod keeper;
mod layout;
mod link;
mod memory;
mod options;
mod process;
mod qmp;
mod recover;
mod registers;
mod runstate;
mod source;
mod sys;
mod verify;
mod watch;

pub use doctor::checks;
pub use driver::open;
pub use find::list;
pub use recover::recover;
