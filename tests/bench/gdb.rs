//! The baseline of a register snapshot: one `g` packet to a gdbstub of QEMU's own, as bare as it can be.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// A connection to a gdbstub, which stops the VM for as long as it lasts.
pub struct Gdb(UnixStream);

impl Gdb {
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("the gdbstub");
        stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        let mut gdb = Self(stream);
        // It may say why it stopped before it is asked.
        let _ = gdb.0.read(&mut [0; 4096]);
        gdb.0.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        gdb
    }

    /// Asks for all general registers and returns how long the answer took, in microseconds.
    pub fn registers(&mut self) -> f64 {
        let begun = Instant::now();
        self.0.write_all(b"$g#67").expect("a request");
        let mut answer = Vec::new();
        let mut chunk = [0; 8192];
        // "+", "$", the registers in hexadecimal, "#", and a checksum of two digits.
        while !answer.iter().rev().skip(2).take(1).any(|byte| *byte == b'#') {
            let got = self.0.read(&mut chunk).expect("an answer");
            answer.extend_from_slice(&chunk[..got]);
        }
        let took = begun.elapsed().as_secs_f64() * 1e6;
        self.0.write_all(b"+").expect("an acknowledgement");
        assert!(answer.len() > 600, "{}", String::from_utf8_lossy(&answer));
        took
    }
}
