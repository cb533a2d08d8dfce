//! THE table of checks, a part a file.

mod control;
mod event_files;
mod events;
mod execution;
mod guest_registers;
mod held;
mod holes;
mod hooks;
mod inject;
mod input;
mod instant;
mod memory;
mod ordered;
mod progress;
mod registers;
mod slat;
mod step;
mod tree;
mod views;
mod virtual_memory;
mod watched;

use crate::Check;

/// All parts, in the order they are run.
const PARTS: &[&[Check]] = &[
    tree::CHECKS,
    memory::CHECKS,
    holes::CHECKS,
    ordered::CHECKS,
    registers::CHECKS,
    guest_registers::CHECKS,
    instant::CHECKS,
    execution::CHECKS,
    progress::CHECKS,
    step::CHECKS,
    virtual_memory::CHECKS,
    input::CHECKS,
    events::CHECKS,
    event_files::CHECKS,
    control::CHECKS,
    held::CHECKS,
    watched::CHECKS,
    slat::CHECKS,
    views::CHECKS,
    hooks::CHECKS,
    inject::CHECKS,
];

/// Error numbers of Linux (include/uapi/asm-generic/errno-base.h and errno.h), and their names in `errors`.
mod errno {
    pub const EIO: (i32, &str) = (5, "EIO");
    pub const E2BIG: (i32, &str) = (7, "E2BIG");
    pub const ENOENT: (i32, &str) = (2, "ENOENT");
    pub const EEXIST: (i32, &str) = (17, "EEXIST");
    pub const EBUSY: (i32, &str) = (16, "EBUSY");
    pub const EINVAL: (i32, &str) = (22, "EINVAL");
    pub const ERANGE: (i32, &str) = (34, "ERANGE");
    pub const ESTALE: (i32, &str) = (116, "ESTALE");
    pub const EOPNOTSUPP: (i32, &str) = (95, "EOPNOTSUPP");
}

/// Every check, in the order they are run.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    PARTS.iter().copied().flatten()
}
