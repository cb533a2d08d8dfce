//! What Xen gives: a request of its event ring, the records of a domain's state, and the note that a killed daemon left.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmtree_xen::events::wire::{General, Mode, Request, SLOT};
use vmtree_xen::fuzz::{convert, decode, msrs};
use vmtree_xen::recover;
use vmtree_xen::registers::records::Records;

fuzz_target!(|data: &[u8]| {
    let mut slot = [0; SLOT];
    let length = data.len().min(SLOT);
    slot[..length].copy_from_slice(&data[..length]);
    let (general, _) = (General::of(&slot), Mode::of(&slot));
    if let Ok(request) = Request::read(&slot) {
        let _ = decode::event(&request, &general, vmtree_api::ViewId(0), vmtree_api::Access::READ);
    }
    if let Ok(mut records) = Records::parse(data.to_vec()) {
        let _ = convert::all(&records, 0);
        let _ = (msrs::get(&records, 0, 0x48), msrs::set(&mut records, 0, 0x48, 1).is_some());
        assert!(Records::parse(records.part(0, &[])).is_ok());
    }
    let _ = recover::domid(&String::from_utf8_lossy(data));
});
