//! The arithmetic flags across a verdict: QEMU keeps them in pieces, and puts them together only where a block ends.

use std::fs::File;
use std::os::unix::fs::FileExt;

use vmtree_agent::client::Failure;
use vmtree_agent::{Code, Inject, Kind, Reg, Verdict};
use vmtree_guest::mailbox::{Op, header};

use crate::lab::{LONG, Lab, at_least, wanted, watch};

/// `mov r9d, 1; cmp r9, 2; out 0x80, al`: CF is set.
const LIVE: &[u8] = &[0x41, 0xb9, 1, 0, 0, 0, 0x49, 0x83, 0xf9, 2, 0xe6, 0x80];
/// The same with a jump to the next instruction before the `out`, which is then the first of its block.
const FIRST: &[u8] = &[0x41, 0xb9, 1, 0, 0, 0, 0x49, 0x83, 0xf9, 2, 0xeb, 0, 0xe6, 0x80];

/// A piece of code that goes on with `pushfq; pop rax; mov [result], rax; ret`.
fn telling(code: &[u8], result: u64) -> Vec<u8> {
    let mut code = [code, &[0x9c, 0x58, 0x48, 0xa3]].concat();
    code.extend(result.to_le_bytes());
    code.push(0xc3);
    code
}

/// A guest that is told to execute code which looks at its own flags.
struct Flags {
    lab: Lab,
    ram: File,
    result: u64,
    next: u64,
}

impl Flags {
    fn start() -> Self {
        let lab = Lab::start(2, true);
        let ram = File::options().read(true).write(true).open(lab.folder.path().join("ram")).unwrap();
        let result = lab.mailbox.header(header::SCRATCH).unwrap() + 0x200;
        let next = lab.mailbox.header(header::CODE).unwrap() + 0x400;
        Self { lab, ram, result, next }
    }

    /// Each code at an address of its own: what QEMU has translated it does not look at again.
    fn post(&mut self, code: &[u8]) -> u64 {
        let at = self.next;
        self.next += 0x40;
        self.ram.write_all_at(&telling(code, self.result), at).unwrap();
        self.lab.mailbox.post(1, Op::Exec, &[1, at]).unwrap()
    }

    fn end(&self, seq: u64) -> u64 {
        self.lab.mailbox.outcome(1, Op::Exec, seq, LONG).unwrap();
        let mut word = [0; 8];
        self.ram.read_exact_at(&mut word, self.result).unwrap();
        u64::from_le_bytes(word) & 0x8d5
    }
}

#[test]
fn a_verdict_keeps_the_flags_or_is_refused() {
    if !at_least((11, 0)) {
        return;
    }
    let mut guest = Flags::start();
    let client = guest.lab.client();
    // CF, PF, AF and SF of 1 - 2.
    for code in [LIVE, FIRST] {
        let seq = guest.post(code);
        assert_eq!(guest.end(seq), 0x95);
    }
    client.watch(&wanted([watch(Kind::Io, true)])).unwrap();
    let seq = guest.post(FIRST);
    let event = client.next(LONG).unwrap().unwrap();
    client.answer(event.seq, &Verdict::Deny).unwrap();
    assert_eq!(guest.end(seq), 0x95);

    let seq = guest.post(LIVE);
    let event = client.next(LONG).unwrap().unwrap();
    let fault = Verdict::Inject(Inject::PageFault { address: 0x1000, error: 0 });
    for verdict in [Verdict::Deny, fault, Verdict::Set(vec![(Reg::Rip, event.rip + 2)])] {
        let Err(Failure::Refused(refusal)) = client.answer(event.seq, &verdict) else {
            panic!("{verdict:?}")
        };
        assert!(refusal.code == Code::Unsupported && refusal.why.contains("one-insn-per-tb"), "{refusal:?}");
    }
    assert!(client.set_registers(event.seq, &[(Reg::Rip, event.rip + 2)]).is_err());
    // What it is answered otherwise keeps them.
    client.answer(event.seq, &Verdict::Set(vec![(Reg::R9, 5)])).unwrap();
    assert_eq!(guest.end(seq), 0x95);
}

#[test]
fn flags_that_nothing_uses_are_in_no_verdicts_way() {
    if !at_least((11, 0)) {
        return;
    }
    let mut guest = Flags::start();
    let client = guest.lab.client();
    client.watch(&wanted([watch(Kind::Io, true)])).unwrap();
    // After the `out` comes `xor eax, eax`, which sets them.
    let seq = guest.post(&[LIVE, &[0x31, 0xc0]].concat());
    let event = client.next(LONG).unwrap().unwrap();
    client.answer(event.seq, &Verdict::Deny).unwrap();
    assert_eq!(guest.end(seq), 0x44);
}
