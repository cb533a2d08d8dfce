//! What is known of a VM when it is opened and does not change.

use std::fmt;

/// The architecture of the guest's vCPUs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Arch {
    /// AMD64 / Intel 64.
    X86_64,
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::X86_64 => f.write_str("x86_64"),
        }
    }
}

/// Facts of a VM. What a driver doesn't know is `None`, never a made-up value.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The driver's name, as in SOURCE.
    pub driver: &'static str,
    /// The VM's own name, where it has one.
    pub name: Option<String>,
    /// Its architecture.
    pub arch: Arch,
    /// How many vCPUs it has; `None` where the source has memory only (a raw dump).
    pub vcpus: Option<u32>,
    /// Further `key value` lines for `info`, in this order: process, version, accelerator, ways of access.
    pub extra: Vec<(&'static str, String)>,
}
