//! Records as an open file shows them.

use super::filter::Format;
use super::record::Item;

/// Adds one record.
pub fn show(format: Format, item: &Item, out: &mut Vec<u8>) {
    let text = match item {
        Item::Event { record, held } => {
            format!("seq={} kind={} held={}", record.seq, record.event.kind, u8::from(*held))
        }
        Item::Lost { first, last } => format!("kind=lost first={first} last={last}"),
    };
    let text = match format {
        Format::Text | Format::Binary => text,
        Format::Json => format!("{{\"{text}\"}}"),
    };
    out.extend_from_slice(text.as_bytes());
    out.push(b'\n');
}

/// How many records surely fit into this much room, at least one.
pub fn fit(format: Format, room: usize) -> usize {
    let longest = match format {
        Format::Text => 384,
        Format::Json => 512,
        Format::Binary => 128,
    };
    (room / longest).clamp(1, 1024)
}
