//! A Debian kernel boots under the plugin. What that costs: `cargo bench --bench agent`.

mod guest;
mod told;
#[path = "../../../../tests/labs/qemu/lab.rs"]
mod vm;
