//! Tests of the binary record and its reader.

use std::io::{ErrorKind, Read};

use proptest::prelude::*;

use super::super::event::tests::any_item;
use super::*;

fn fault() -> Item {
    let kind = InterruptType::HardwareException;
    let detail = Detail::Interrupt { vector: Some(14), kind, error: Some(6), cr2: Some(0x7000) };
    let kind = EventKind::Interrupt;
    let event = Event { vcpu: VcpuId(1), view: ViewId(2), kind, rip: 0x1122, cr3: 0x3344, detail };
    Item::Event { record: Record { seq: 5, time: 9, event }, held: true }
}

#[test]
fn fields_lie_where_they_are_said_to() {
    let raw = encode(&fault());
    assert_eq!(raw[..8], [1, 0, 72, 0, 8, 0, HELD | ERROR | HAS_B, 2]);
    let words: Vec<u32> =
        raw[8..].chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    assert_eq!(words, [5, 0, 9, 0, 1, 2, 0x1122, 0, 0x3344, 0, 14, 6, 0, 0, 0x7000, 0]);
    let lost = encode(&Item::Lost { first: 3, last: 4 });
    assert_eq!((lost[4], lost[8], lost[16]), (LOST, 3, 4));
}

#[test]
fn the_documentation_has_these_offsets() {
    let table: String = include_str!("record.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//! |"))
        .map(|line| format!("|{line}\n").replace("[`EventKind::ALL`]", "the table of kinds"))
        .collect();
    let page = include_str!("../../docs/formats.md");
    assert!(page.contains(&table), "put this table into docs/formats.md:\n{table}");
}

#[test]
fn refuses_what_is_no_record_in_words() {
    let good = encode(&fault());
    for (at, value, named) in [
        (0, 2, "version 2, not 1"),
        (2, 80, "80 bytes, not 72"),
        (4, 0, "kind 0"),
        (4, 16, "kind 16"),
        (5, 1, "fit no event"),
        (6, 0x80, "fit no event"),
        (7, 6, "fit no event"),
        (49, 1, "fit no event"),
        (56, 1, "fit no event"),
    ] {
        let mut bad = good;
        bad[at] = value;
        let error = decode(&bad).unwrap_err();
        assert!(error.why().contains(named), "byte {at}: {error}");
    }
    for bad in [&good[..71], &[], &[good.as_slice(), &[0]].concat()] {
        assert!(decode(bad).unwrap_err().why().contains("not 72"));
    }
}

/// A stream that gives a few bytes a call, and now and then none.
struct Trickle<'a>(&'a [u8], usize, bool);

impl Read for Trickle<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.2 = !self.2;
        if self.2 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let most = self.1.min(buf.len());
        self.0.read(&mut buf[..most])
    }
}

#[test]
fn a_stream_that_ends_inside_a_record_says_so_once() {
    let stream = [encode(&fault()).as_slice(), &[1, 0, 72]].concat();
    let mut reader = Reader::new(stream.as_slice());
    assert_eq!(reader.next_item().unwrap(), Some(fault()));
    assert_eq!(reader.next_item().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert_eq!(reader.next_item().unwrap(), None);
}

#[test]
fn a_bad_record_is_told_and_passed() {
    let stream = [[0; RECORD_BYTES], encode(&fault())].concat();
    let mut reader = Reader::new(stream.as_slice());
    assert_eq!(reader.next_item().unwrap_err().kind(), ErrorKind::InvalidData);
    assert_eq!(reader.next_item().unwrap(), Some(fault()));
}

proptest! {
    #[test]
    fn items_read_back(item in any_item()) {
        prop_assert_eq!(decode(&encode(&item)).unwrap(), item);
    }

    #[test]
    fn any_bytes_are_an_item_or_refused(short: Vec<u8>, body in prop::collection::vec(any::<u8>(), RECORD_BYTES), kind in 0u8..17) {
        prop_assert!(decode(&short).is_err() || short.len() == RECORD_BYTES);
        let mut raw = encode(&fault());
        raw[5..].copy_from_slice(&body[5..]);
        raw[4] = kind;
        if let Ok(item) = decode(&raw) {
            prop_assert_eq!(encode(&item), raw);
        }
    }

    #[test]
    fn a_damaged_record_is_another_item_or_refused(item in any_item(), at in 0..RECORD_BYTES, bit in 0..8) {
        let mut raw = encode(&item);
        raw[at] ^= 1u8 << bit;
        match decode(&raw) {
            Ok(other) => prop_assert_ne!(other, item),
            Err(error) => prop_assert!(!error.to_string().contains(char::is_control)),
        }
    }

    #[test]
    fn a_stream_reads_back_however_it_comes(items in prop::collection::vec(any_item(), 0..1100), step in 1usize..9999) {
        let stream: Vec<u8> = items.iter().flat_map(encode).collect();
        let mut reader = Reader::new(Trickle(&stream, step.max(stream.len() / 50), false));
        let mut found = Vec::new();
        loop {
            match reader.next_item() {
                Ok(Some(item)) => found.push(item),
                Ok(None) => break,
                Err(error) => prop_assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        prop_assert_eq!(found, items);
    }
}
