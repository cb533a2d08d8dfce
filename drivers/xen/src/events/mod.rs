//! Events, by the ring of Xen's monitor.

pub mod wire;
