//! The guest that every vmtree driver is tested with, and that the demo mounts.
//!
//! [`elf`] assembles one ELF64 file. It starts in long mode at its entry (the built-in machine) or at its PVH note
//! (`qemu-system-x86_64 -kernel`). [`mailbox`] is the page through which a test orders work and reads the guest's own
//! counts; [`Mailbox`] is a client of it over any [`Bytes`]. See docs/guest.md.

pub mod asm;
pub mod cases;
mod client;
mod elf;
pub mod layout;
pub mod mailbox;

use std::sync::OnceLock;

pub use client::{Bytes, Counters, Error, Mailbox, Outcome};

/// The guest as an ELF64 file.
///
/// The program is a constant: it is assembled at the first call and always alike. A mistake in it is found by this
/// crate's tests; the file would then be empty, which every loader refuses.
#[must_use]
pub fn elf() -> Vec<u8> {
    static ELF: OnceLock<Vec<u8>> = OnceLock::new();
    ELF.get_or_init(|| asm::assemble().map(|code| elf::write(&code)).unwrap_or_default()).clone()
}
