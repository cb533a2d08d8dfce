//! Paravirtual guests: memory by the guest's own table of its frames, registers by Xen's context of a vCPU, and nothing that
//! takes hardware virtualization.

pub mod context;
pub mod frames;
pub mod memory;
pub mod p2m;
pub mod registers;
pub mod root;
pub mod segments;

use std::sync::Arc;

use vmtree_api::Missing;

use crate::hypervisor::MachineTable;

/// What a paravirtual domain has that others don't.
pub struct Pv {
    /// The machine's frame of the page that it shares with Xen.
    pub shared_info: u64,
    /// Xen's table of whose frame is which.
    pub m2p: Arc<dyn MachineTable>,
}

/// Why a paravirtual guest lacks something.
#[must_use]
pub fn missing(what: &str) -> Missing {
    Missing::new(format!("Xen has {what} for hardware-virtualized guests alone, and this one is PV"))
        .cure("boot it as type=\"pvh\", which the kernels of PV guests can do since Linux 4.11")
}

/// What it lacks; each completes [`missing`].
pub mod lacks {
    #![allow(missing_docs, reason = "the constants say it")]
    pub const EVENTS: &str = "events";
    pub const VIEWS: &str = "second-level translation, and so rights of frames and views,";
    pub const INJECTION: &str = "injection of faults and interrupts";
    pub const STEPS: &str = "steps that the guest can't see";
    pub const MSRS: &str = "MSRs of a vCPU to tell";
}
