//! Stock QEMU, TCG or KVM, found and read from outside: nothing in it is patched. Events come from a plugin that the user
//! may load into it.
//!
//! The layout of guest memory comes from the QMP monitor. The bytes come from the files behind shared memory
//! backends, or from the memory of the QEMU process where there are none.

mod agent;
mod backing;
mod clock;
mod control;
mod debts;
mod dial;
mod doctor;
mod driver;
mod execution;
mod find;
mod gdb;
mod hmp;
mod keeper;
mod kvm;
mod layout;
mod link;
mod memory;
mod options;
mod process;
mod qmp;
mod recover;
mod registers;
mod runstate;
mod said;
mod source;
mod standstill;
mod sys;
mod verify;
mod watch;

pub use doctor::checks;
pub use driver::open;
pub use find::list;
pub use recover::recover;

/// Parsers of what QEMU sends, for the fuzz targets of tests/fuzz; nothing else outside this crate uses them.
#[doc(hidden)]
pub mod fuzz {
    pub use crate::gdb::{packet, stub, target};
    pub use crate::hmp::{answers, mtree, ramblock, registers};
    pub use crate::qmp::Qmp;
}
