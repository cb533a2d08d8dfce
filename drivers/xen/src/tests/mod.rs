//! The driver over a hypervisor that only exists here.

mod away;
mod copies;
mod dry;
mod events;
mod fake;
mod fake_pv;
mod fake_slat;
mod faults;
mod fence;
mod going;
mod guarded;
mod lift;
mod lost;
mod ports;
mod pv;
mod pv_tables;
pub mod ram;
mod slots;
mod undo;
mod window;

use std::sync::Arc;

pub use ram::Ram;

use crate::driver::Opening;
use crate::hypervisor::{Frames, Hypervisor};
use crate::pv::Pv;
use fake::{Fake, Shared};

/// How domain 3 is opened over a fake.
fn opening(xen: &Arc<Shared>, frames: Arc<dyn Frames>, pv: Option<Pv>) -> Opening {
    let shared = Arc::clone(xen);
    let open = Box::new(move || Ok(Box::new(Fake(shared)) as Box<dyn Hypervisor>));
    Opening { domid: 3, name: None, version: None, budget: 8 << 20, take_ring: false, frames, pv, open }
}

/// The frames of a domain that is not PV.
fn frames() -> Arc<dyn Frames> {
    Arc::new(Ram::new(&[0..0x100, 0x10_1000..0x10_1100]))
}
