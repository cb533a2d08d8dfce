//! The fake's guest: performs the orders that memory and register checks give, over the plain file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use vmtree_guest::layout;
use vmtree_guest::mailbox::{Counter, MAILBOX, Op, counter_of, header, slot, slot_of, status};

pub const CR0: u64 = 0x8001_0033;
pub const CR4: u64 = 0x620;
pub const LSTAR: u64 = 0x10_3000;

struct Guest<'a>(&'a File);

impl Guest<'_> {
    fn word(&self, at: u64) -> u64 {
        let mut word = [0; 8];
        // A truncated memory reads as zeros.
        let _ = self.0.read_exact_at(&mut word, at);
        u64::from_le_bytes(word)
    }

    fn put(&self, at: u64, value: u64) {
        self.0.write_all_at(&value.to_le_bytes(), at).unwrap();
    }

    fn count(&self, counter: Counter, n: u64) {
        let at = counter_of(0, counter);
        self.put(at, self.word(at) + n);
    }

    fn greet(&self) {
        let mut text = [0; 64];
        self.0.read_exact_at(&mut text, layout::GREETING).unwrap();
        text.make_ascii_uppercase();
        self.0.write_all_at(&text, layout::REPLY).unwrap();
    }

    fn read(&self, at: u64, size: u64) -> Result<[u64; 4], [u64; 4]> {
        Ok([self.word(gpa(at)?) & u64::MAX >> (64 - 8 * size), 0, 0, 0])
    }

    fn write(&self, at: u64, value: u64, size: u64) -> Result<[u64; 4], [u64; 4]> {
        self.0.write_all_at(&value.to_le_bytes()[..size as usize], gpa(at)?).unwrap();
        Ok([0; 4])
    }

    /// The results of an order, or those of its fault.
    fn perform(&self, op: u64, [a, b, c, d]: [u64; 4]) -> Result<[u64; 4], [u64; 4]> {
        let op = Op::ALL.iter().find(|known| **known as u64 == op).unwrap();
        let counter = match op {
            Op::WriteCr3 => Counter::Cr3Writes,
            Op::ReadMsr => Counter::MsrReads,
            Op::Int3 => Counter::Breakpoints,
            Op::Invlpg => Counter::Invlpgs,
            Op::SoftInterrupt => Counter::SoftInterrupts,
            _ => Counter::Heartbeat,
        };
        self.count(counter, a);
        match op {
            Op::Read | Op::UserRead => self.read(b, c),
            Op::Write | Op::UserWrite => self.write(b, c, d),
            Op::Copy => {
                let mut bytes = vec![0; d as usize];
                self.0.read_exact_at(&mut bytes, c).unwrap();
                self.0.write_all_at(&bytes, b).unwrap();
                Ok([0; 4])
            }
            Op::Fill => {
                self.0.write_all_at(&vec![c as u8; d as usize], b).unwrap();
                Ok([0; 4])
            }
            Op::Background => {
                self.put(MAILBOX + header::BACKGROUND, a);
                Ok([0; 4])
            }
            Op::WriteCr8 => {
                (0..a).for_each(|_| self.count(Counter::Cr8Writes, 1));
                Ok([0; 4])
            }
            // A thousand rounds a millisecond.
            Op::Spin | Op::UserSpin => {
                sleep(Duration::from_micros(a));
                Ok([0; 4])
            }
            Op::WriteCr0 => Ok([CR0, 0, 0, 0]),
            Op::WriteCr4 => Ok([CR4, 0, 0, 0]),
            Op::ReadMsr if b == 0xc000_0080 => Ok([0xd01, 0, 0, 0]),
            Op::ReadMsr if b == 0xc000_0082 => Ok([LSTAR, 0, 0, 0]),
            Op::ReadMsr => Err([13, 0, 0, 0]),
            _ => Ok([0; 4]),
        }
    }

    fn order(&self) {
        let slot = slot_of(0);
        let seq = self.word(slot + slot::SEQ);
        if seq == self.word(slot + slot::ACK) {
            return;
        }
        self.put(slot + slot::BEGUN, seq);
        let args = [0, 8, 16, 24].map(|at| self.word(slot + slot::ARGS + at));
        let result = self.perform(self.word(slot + slot::OP), args);
        let (status, results) = match result {
            Ok(results) => (status::DONE, results),
            Err(fault) => (status::FAULTED, fault),
        };
        self.put(slot + slot::STATUS, status);
        (0..4).for_each(|n| self.put(slot + slot::RESULTS + 8 * n, results[n as usize]));
        self.count(Counter::Orders, 1);
        self.put(slot + slot::ACK, seq);
    }
}

/// Where an address lies; the fault that it gives.
fn gpa(gva: u64) -> Result<u64, [u64; 4]> {
    match gva & !0xfff {
        layout::USER_DATA => Ok(gva - layout::USER_DATA + layout::DATA),
        layout::GUARD => Err([14, 0, gva, 0]),
        _ if gva < super::RAM => Ok(gva),
        _ => Err([14, 0, gva, 0]),
    }
}

/// The guest, until told to stop.
pub fn run(mem: &File, stop: &AtomicBool) {
    let guest = Guest(mem);
    while !stop.load(Ordering::Relaxed) {
        guest.count(Counter::Heartbeat, 1);
        guest.count(Counter::Ticks, 1);
        if guest.word(MAILBOX + header::BACKGROUND) == 1 {
            guest.greet();
            guest.count(Counter::Syscalls, 1);
            guest.count(Counter::Cr3Writes, 1);
        }
        guest.order();
        sleep(Duration::from_micros(300));
    }
}
