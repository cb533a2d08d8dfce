//! Guest memory as one range of bytes: the only place that splits at region and page borders.

mod cache;
mod phys;
mod virt;

pub use cache::{Counts, PageCache};
pub use phys::{GuestMemory, Holes};
pub use virt::{VirtualMemory, fault_in_words, offset_to_gva};
