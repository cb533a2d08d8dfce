//! Guest memory as one range of bytes: the only place that splits at region and page borders.

mod cache;
mod phys;
mod view;
mod virt;

pub use cache::{Counts, PageCache};
pub use phys::{GuestMemory, Holes};
pub use view::ViewMemory;
pub use virt::{VirtualMemory, fault_in_words, offset_to_gva};

use std::ops::Range;

use vmtree_api::PAGE_SIZE;

use crate::error::FsResult;

/// Calls `each` with the address and the part of a range that lies in each page, until one is not done whole, and
/// returns how many bytes were done.
fn each_page(
    start: u64,
    len: usize,
    mut each: impl FnMut(u64, Range<usize>) -> FsResult<usize>,
) -> FsResult<usize> {
    let mut done = 0;
    while done < len {
        let Some(at) = start.checked_add(done as u64) else { break };
        let bytes = (len - done).min((PAGE_SIZE - at % PAGE_SIZE) as usize);
        match each(at, done..done + bytes) {
            Ok(part) => {
                done += part;
                if part < bytes {
                    break;
                }
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}
