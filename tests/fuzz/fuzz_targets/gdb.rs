//! Packets of a gdbstub and its description of registers. The first byte says how the bytes are cut into pieces.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmtree_qemu::fuzz::packet::{Broken, Decoder, Item, encode, from_hex, to_hex};
use vmtree_qemu::fuzz::target::{Layout, includes};

/// All items of a stream, and why it ended early.
fn items(bytes: &[u8], piece: usize) -> (Vec<Item>, Option<Broken>) {
    let (mut decoder, mut items) = (Decoder::default(), Vec::new());
    for piece in bytes.chunks(piece) {
        decoder.push(piece);
        loop {
            match decoder.next_item() {
                Ok(Some(item)) => items.push(item),
                Ok(None) => break,
                Err(broken) => return (items, Some(broken)),
            }
        }
    }
    (items, None)
}

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    let found = items(bytes, usize::from(*first).max(1));
    assert_eq!(found, items(bytes, usize::MAX), "other packets in other pieces");
    let payloads = found.0.iter().filter_map(|item| match item {
        Item::Packet(payload) => Some(payload),
        Item::Refused => None,
    });
    let payloads: Vec<_> = payloads.collect();
    let again: Vec<u8> = payloads.iter().flat_map(|payload| encode(payload)).collect();
    let wanted = payloads.iter().map(|payload| Item::Packet(payload.to_vec())).collect();
    assert_eq!(items(&again, 7), (wanted, None));

    if let Some(value) = from_hex(bytes) {
        assert_eq!(to_hex(&value).as_bytes(), bytes.to_ascii_lowercase());
    }
    assert_eq!(from_hex(to_hex(bytes).as_bytes()).as_deref(), Some(bytes));
    describe(&String::from_utf8_lossy(bytes));
});

fn describe(text: &str) {
    for name in includes(text) {
        assert!(name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':'), "{name:?}");
    }
    let layout = Layout::new(&[text.to_owned(), text.to_owned()]);
    let registers = layout.registers();
    let mut offset = 0;
    for register in registers {
        assert_eq!(register.offset, offset, "{register:?} does not follow the one before it");
        offset += register.bytes;
        assert!(layout.get(&register.name).is_some_and(|first| first.number <= register.number));
    }
}
