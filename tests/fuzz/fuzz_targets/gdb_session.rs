//! A session with a gdbstub that answers each request with the next line of the input, as a packet, and hangs up at its
//! end. Whatever it answers, what fails fails with one line, and in time.

#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use libfuzzer_sys::fuzz_target;
use vmtree_api::Cancel;
use vmtree_fuzz::checked;
use vmtree_qemu::fuzz::packet::encode;
use vmtree_qemu::fuzz::stub::Stub;

/// The stub's end of the connection.
fn answer(mut client: UnixStream, input: &[u8]) {
    let mut chunk = [0; 4096];
    for (nth, line) in input.split(|byte| *byte == b'\n').enumerate() {
        let mut request = Vec::new();
        while request.iter().rev().nth(2) != Some(&b'#') {
            match client.read(&mut chunk) {
                Ok(bytes) if bytes > 0 => request.extend(&chunk[..bytes]),
                _ => return,
            }
        }
        // A stop that nothing follows is waited for: not by a fuzzer.
        if client.write_all(&encode(line)).is_err() || nth == 0 && line.starts_with(b"T") {
            return;
        }
    }
}

fn session(client: UnixStream) {
    let Some(mut stub) = checked(Stub::begin(client)) else { return };
    let names = ["rax", "rip", "eflags", "cr3"];
    if let Some(values) = checked(stub.read(0)) {
        for name in names {
            let _ = values.get(name);
        }
    }
    for name in names {
        checked(stub.write_one(0, name, 0x1234));
    }
    checked(stub.step(1, 3, &Cancel::default()));
}

fuzz_target!(|data: &[u8]| {
    let Ok((ours, theirs)) = UnixStream::pair() else { return };
    thread::scope(|scope| {
        scope.spawn(|| answer(theirs, data));
        session(ours);
    });
});
