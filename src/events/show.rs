//! Records as an open file shows them.

use vmtree_api::ViewId;

use super::filter::Format;
use super::record::Item;
use crate::text::{event, record};

/// How views are called, in records and in answers.
pub trait ViewNames: Send + Sync {
    /// The view of this name.
    fn find(&self, name: &str) -> Option<ViewId>;

    /// The name of a view; `None` for one that is gone.
    fn name(&self, view: ViewId) -> Option<String>;
}

/// Adds one record.
pub fn show(format: Format, item: &Item, names: &dyn ViewNames, out: &mut Vec<u8>) {
    match format {
        Format::Text => event::print_text(out, item, &|view| names.name(view)),
        Format::Json => event::print_json(out, item, &|view| names.name(view)),
        Format::Binary => out.extend_from_slice(&record::encode(item)),
    }
}

/// How many records to take for this much room, at least one. Those that do not fit after all are kept for the next read.
pub fn fit(format: Format, room: usize) -> usize {
    let bytes = match format {
        // Lines are shorter than this.
        Format::Text => 320,
        Format::Json => 384,
        Format::Binary => record::RECORD_BYTES,
    };
    (room / bytes).clamp(1, 1024)
}
