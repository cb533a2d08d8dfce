//! Registers as text and as a struct. The first byte chooses the register's own file; the rest is what is written.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmtree::text::{raw, registers, text_of};
use vmtree_api::{Arch, RegId, RegOffer, RegisterSet};
use vmtree_fuzz::checked;

const ARCH: Arch = Arch::X86_64;

fn offers() -> Vec<RegOffer> {
    (0..ARCH.registers().len()).map(|index| RegOffer { id: RegId(index as u16), writable: true }).collect()
}

fn text(first: u8, text: &str) {
    let zero = RegisterSet::new(ARCH);
    let mut set = zero.clone();
    match checked(registers::apply_all(text, &mut set)) {
        None => assert_eq!(set, zero, "a refused text changed registers"),
        Some(named) => {
            assert!(!named.is_empty() && named.is_sorted());
            let mut again = zero.clone();
            let shown = registers::show_all(ARCH, &offers(), &set);
            assert!(registers::apply_all(&shown, &mut again).is_ok(), "{shown}");
            assert_eq!(again, set);
        }
    }
    let id = RegId(u16::from(first));
    let mut set = zero.clone();
    match checked(registers::apply(text, id, &mut set)) {
        None => assert_eq!(set, zero, "a refused text changed a register"),
        Some(()) => {
            let mut again = zero.clone();
            let shape = ARCH.registers()[usize::from(id.0)].shape;
            let shown = set.get(id).map(|value| registers::show(value, shape)).unwrap_or_default();
            assert!(registers::apply(&shown, id, &mut again).is_ok(), "{shown}");
            assert_eq!(again, set);
        }
    }
}

fn bytes(bytes: &[u8]) {
    let Some(found) = checked(raw::decode(bytes, ARCH)) else { return };
    let mut set = RegisterSet::new(ARCH);
    for (id, value) in &found {
        assert!(set.set(*id, *value).is_ok());
    }
    let present: Vec<_> = found.iter().map(|(id, _)| RegOffer { id: *id, writable: true }).collect();
    let again = raw::encode(ARCH, &present, &set);
    assert_eq!(raw::decode(&again, ARCH).ok(), Some(found));
}

fuzz_target!(|data: &[u8]| {
    bytes(data);
    if let Some((first, rest)) = data.split_first()
        && let Some(rest) = checked(text_of(rest))
    {
        text(*first, rest);
    }
});
