//! The kvmi driver: QEMU's handshake, and whole sessions with a host that the bytes play, honest or not. No vCPU may wait in the end.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmtree_fuzz::checked;

fuzz_target!(|data: &[u8]| {
    let _ = checked(vmtree_kvmi::fuzz::hello(data));
    let Some((first, bytes)) = data.split_first() else { return };
    vmtree_kvmi::fuzz::session(bytes, first % 2 == 1);
});
