//! The bits of control registers and flags, and which of them this machine has.

pub use vmtree_api::x86::bits::*;

/// XSAVE and its like are on.
pub const CR4_OSXSAVE: u64 = 1 << 18;

/// Every bit of CR4 that this machine has.
pub const CR4_KNOWN: u64 = CR4_TSD
    | CR4_DE
    | CR4_PSE
    | CR4_PAE
    | CR4_PGE
    | CR4_OSFXSR
    | CR4_OSXMMEXCPT
    | CR4_FSGSBASE
    | CR4_OSXSAVE
    | CR4_SMEP
    | CR4_SMAP;

/// Every bit of EFER that this machine has.
pub const EFER_KNOWN: u64 = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;

/// Whether bits 63 to 47 are all the same, as 4-level paging wants it.
#[must_use]
pub const fn canonical(address: u64) -> bool {
    ((address << 16) as i64 >> 16) as u64 == address
}
