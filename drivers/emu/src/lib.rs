//! The built-in machine: an x86-64 machine in software.

mod apic;
pub mod cpu;
mod driver;
mod events;
mod execution;
mod injection;
pub mod loader;
mod machine;
mod options;
mod phys;
mod ram;
mod registers;
mod slat;
mod start;
mod sys;
#[cfg(test)]
mod tests;
mod turns;
mod views;

use std::sync::Arc;

use vmtree_api::{Check, Driver, Host, Missing, Result, Source};

/// Opens a machine: `emu:` with the options `ram`, `vcpus`, `image` and `seed` (docs/emu.md).
///
/// # Errors
/// A bad option, an image that can't be loaded, or a host that can't give the memory; one line, with the cure.
pub fn open(source: Source, host: Arc<dyn Host>) -> Result<Box<dyn Driver>> {
    let options = options::Options::take(source)?;
    Ok(Box::new(driver::Emu::open(options, host)?))
}

/// What the machine needs of this host.
#[must_use]
pub fn checks() -> Vec<Check> {
    let found = match sys::Shared::new("check", 1 << 21) {
        Ok(_) => Ok("memfd_create works".to_owned()),
        Err(error) => Err(Missing::new(format!("no memory can be had by memfd_create: {error}"))
            .cure("allow memfd_create and shared mappings (seccomp, RLIMIT_AS)")),
    };
    vec![Check { what: "memory for the built-in machine".to_owned(), found }]
}
