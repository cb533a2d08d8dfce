//! What a vmtree driver offers, and nothing else: no I/O, no `unsafe`, no operating system.
//!
//! A driver implements [`Driver`] and, by value, the traits that its hypervisor really has. A trait that it
//! lacks is [`Missing`]: the sentence that `capabilities` prints, with its cure.

pub mod addr;
pub mod driver;
pub mod error;
pub mod events;
pub mod execution;
pub mod facts;
pub mod memory;
pub mod number;
pub mod registers;
pub mod source;
pub mod undo;
pub mod views;
pub mod x86;

pub use addr::{Access, Gfn, Gpa, Gva, PAGE_SIZE, VcpuId, ViewId};
pub use driver::{Check, Driver, Host, Listed, Missing, NoHost};
pub use error::{Error, ErrorKind, Result};
pub use execution::{Cancel, Execution, Pause, RunState};
pub use facts::{Arch, Facts};
pub use memory::{Block, BlockRef, MachineMemory, Memory, MemoryMap, Region, RegionKind, Span};
pub use registers::{Msrs, Pace, RegDef, RegId, RegOffer, RegShape, RegValue, RegisterSet, Registers};
pub use source::Source;
