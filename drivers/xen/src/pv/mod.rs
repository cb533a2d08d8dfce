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

/// Why a paravirtual guest lacks something: one of [`lacks`].
#[must_use]
pub fn missing(why: &'static str) -> Missing {
    Missing::new(why).cure("boot it as type=\"pvh\", as Linux can be since 4.11")
}

/// What it lacks.
pub mod lacks {
    #![allow(missing_docs, reason = "the constants say it")]
    pub const EVENTS: &str = "Xen raises events of HVM and PVH guests, and this one is PV";
    pub const VIEWS: &str =
        "a PV guest has no second-level translation, and so neither rights of frames nor views";
    pub const INJECTION: &str = "Xen injects into HVM and PVH guests, and this one is PV";
    pub const STEPS: &str = "Xen steps HVM and PVH guests, and this one is PV";
    pub const MSRS: &str = "Xen tells no tool the MSRs of a PV guest";
}
