//! The x86-64 register set and its paging (Intel SDM volume 3A; AMD APM volume 2).

pub mod bits;
pub mod check;
mod paging;
mod registers;

pub use paging::{Entry, Fault, PageSize, PagingMode, Walk, walk};
pub use registers::{REGISTERS, Reg, Registers, Segment, Table};
