//! All of QEMU's plugin interface, and nothing else of QEMU: what other modules see of it is safe.
//!
//! Every function is looked up by name when the library is loaded, so one file serves several versions: what a QEMU lacks
//! is a gap that is told, not a failure to load. The interface is that of QEMU's docs/devel/tcg-plugins.rst.
#![allow(unsafe_code)]

mod callbacks;
mod cpu;
mod load;
mod table;

pub use callbacks::{Block, Instruction, flush, register};
pub use cpu::{Access, Cpu, outs};
pub use load::{Info, version};
pub use table::has;
