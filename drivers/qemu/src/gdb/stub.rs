//! A session with QEMU's gdbstub: registers by name, and steps. The VM must stand still for all of it.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vmtree_api::{Cancel, Error, ErrorKind, Result};

use super::packet::{from_hex, to_hex};
use super::target::{Layout, Register, includes};
use super::wire::{Wire, protocol};
use crate::said::said;

const OP: &str = "ask QEMU's gdbstub";

/// The largest target description that is read, in bytes; QEMU's is 20 KiB.
const DESCRIPTION_LIMIT: usize = 1 << 20;

/// The most documents that it may include; QEMU's includes at most three.
const DOCUMENTS: usize = 16;

/// The bits of `Qqemu.sstep` (QEMU's include/hw/core/cpu.h): one instruction, with interrupts as they come.
const STEP: u32 = 1;

/// How long one instruction may take before the vCPU is looked at: it may wait for an interrupt.
const INSTRUCTION: Duration = Duration::from_millis(50);

/// How long a halted vCPU may wait for an interrupt before it is held to be halted for good.
const HALTED: Duration = Duration::from_secs(1);

/// A session.
#[derive(Debug)]
pub struct Stub {
    wire: Wire,
    layout: Layout,
    /// The number of the machine's process, for thread ids as `p1.2`; `None` for a stub without processes.
    process: Option<u32>,
    /// The bits of `Qqemu.sstep` that this accelerator has.
    step_bits: u32,
    /// What `Qqemu.sstep` was set to last.
    step_set: Option<u32>,
}

/// The registers of one vCPU as they came in one packet.
#[derive(Debug)]
pub struct Values<'a> {
    layout: &'a Layout,
    bytes: Vec<u8>,
}

impl Values<'_> {
    /// The register called `name`; `None` if the stub has none such of at most 8 bytes.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u64> {
        let register = self.layout.get(name)?;
        word(self.bytes.get(register.offset..register.offset.checked_add(register.bytes)?)?)
    }
}

/// Little-endian bytes as a number; `None` for more than 8.
fn word(bytes: &[u8]) -> Option<u64> {
    let mut whole = [0; 8];
    whole.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(u64::from_le_bytes(whole))
}

impl Stub {
    /// Begins a session over `stream`, which may have stopped the VM by being connected.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] if it is no QEMU's gdbstub; those of the connection.
    pub fn begin(stream: UnixStream) -> Result<Self> {
        let mut wire = Wire::new(stream);
        let features = text(wire.ask_first("qSupported:multiprocess+;xmlRegisters=i386")?)?;
        let has = |feature: &str| features.split(';').any(|word| word == feature);
        if !has("qXfer:features:read+") {
            return Err(protocol("does not describe its registers"));
        }
        let mut stub =
            Self { wire, layout: Layout::default(), process: None, step_bits: STEP, step_set: None };
        let target = stub.description("target.xml")?;
        let mut documents = vec![target.clone()];
        for name in includes(&target) {
            if documents.len() > DOCUMENTS {
                return Err(protocol("describes its registers in too many documents"));
            }
            documents.push(stub.description(&name)?);
        }
        stub.layout = Layout::new(&documents);
        if has("multiprocess+") {
            stub.process = Some(stub.first_process()?);
        }
        let bits = stub.wire.ask("qqemu.sstepbits")?;
        stub.step_bits = step_bits(&bits).ok_or_else(|| refused("qqemu.sstepbits", &bits))?;
        Ok(stub)
    }

    /// Whether the session can go on.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.wire.is_sound()
    }

    /// Whether a request stopped a VM that somebody had let run meanwhile.
    #[must_use]
    pub fn broke_in(&self) -> bool {
        self.wire.broke_in()
    }

    /// Takes word of stops that has come. To be done now and then while the VM runs, or QEMU would wait with it.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn drain(&mut self) -> Result<()> {
        self.wire.drain()
    }

    /// All registers of the vCPU with this index.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such vCPU; those of the connection.
    pub fn read(&mut self, vcpu: u32) -> Result<Values<'_>> {
        self.select(vcpu)?;
        let bytes = self.all()?;
        Ok(Values { layout: &self.layout, bytes })
    }

    /// All registers of the vCPU that is selected.
    fn all(&mut self) -> Result<Vec<u8>> {
        let answer = self.wire.ask("g")?;
        from_hex(&answer).filter(|bytes| !bytes.is_empty()).ok_or_else(|| refused("g", &answer))
    }

    /// Sets one register of the vCPU with this index. QEMU may drop bits: read it back.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such vCPU or register, [`ErrorKind::Invalid`] if it is refused; those
    /// of the connection.
    pub fn write_one(&mut self, vcpu: u32, name: &str, value: u64) -> Result<()> {
        let &Register { number, bytes, .. } = self.register(name)?;
        let value = value.to_le_bytes();
        let Some(value) = value.get(..bytes) else {
            return Err(protocol("has a wider register of that name"));
        };
        let request = format!("P{number:x}={}", to_hex(value));
        self.select(vcpu)?;
        let answer = self.wire.ask(&request)?;
        if answer == b"OK" { Ok(()) } else { Err(refused(name, &answer)) }
    }

    /// Executes up to `count` instructions on one vCPU while the others stand still, and returns how many it executed:
    /// fewer if `cancel` was raised or it is halted and no interrupt comes.
    ///
    /// Interrupts wait meanwhile, and so does the guest's clock under TCG: the steps go through the code at hand and
    /// not through the handler of the next tick. A vCPU that halts gets its interrupt.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such vCPU; those of the connection. The VM may run then.
    pub fn step(&mut self, vcpu: u32, count: u64, cancel: &Cancel) -> Result<u64> {
        self.select(vcpu)?;
        // QEMU ends the stepping of the vCPU that is selected for going on, whenever the VM stops.
        let thread = self.thread(vcpu);
        let answer = self.wire.ask(&format!("Hc{thread}"))?;
        if answer != b"OK" {
            return Err(refused("Hc", &answer));
        }
        let mut done = 0;
        // Known before each step: of one that is interrupted on a slow host it can't be told otherwise whether it was done.
        let mut before = self.all()?;
        let mut again = false;
        while done < count && !cancel.raised() {
            let mut one = self.one_step(vcpu, self.step_bits, INSTRUCTION, cancel)?;
            let mut after = self.all()?;
            if !one && self.is_halted(vcpu)? {
                one = self.one_step(vcpu, STEP, HALTED, cancel)?;
                after = self.all()?;
                if !one && self.is_halted(vcpu)? {
                    break;
                }
            }
            // Where nothing changed, TCG may have done no more than look at the interrupts, which it tells as a step too: it
            // is done again, and if nothing changes then either, it is an instruction such as a jump to itself.
            let changed = after != before;
            if changed || one && again {
                done += 1;
            }
            again = one && !changed && !again;
            before = after;
        }
        Ok(done)
    }

    /// Lets the vCPU execute one instruction; false if it did not in time, or `cancel` was raised.
    fn one_step(&mut self, vcpu: u32, bits: u32, patience: Duration, cancel: &Cancel) -> Result<bool> {
        if self.step_set != Some(bits) {
            let answer = self.wire.ask(&format!("Qqemu.sstep={bits:x}"))?;
            if answer != b"OK" {
                return Err(refused("step", &answer));
            }
            self.step_set = Some(bits);
        }
        let thread = self.thread(vcpu);
        self.wire.resume(&format!("vCont;s:{thread}"))?;
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.wire.stopped(left.min(INSTRUCTION))? {
                Some(packet) => return stepped(&packet),
                None if left.is_zero() || cancel.raised() => break,
                None => {}
            }
        }
        self.wire.interrupt()?;
        match self.wire.stopped(HALTED)? {
            Some(packet) => stepped(&packet),
            None => Err(Error::new(ErrorKind::TimedOut, OP, "the vCPU that steps can't be stopped")),
        }
    }

    /// Whether a vCPU waits for an interrupt, as QEMU words it: `CPU#0 [halted ]`.
    fn is_halted(&mut self, vcpu: u32) -> Result<bool> {
        let thread = self.thread(vcpu);
        let answer = self.wire.ask(&format!("qThreadExtraInfo,{thread}"))?;
        let words = from_hex(&answer).ok_or_else(|| refused("qThreadExtraInfo", &answer))?;
        Ok(String::from_utf8_lossy(&words).contains("[halted"))
    }

    /// gdb's threads count from 1, as 0 means any.
    fn thread(&self, vcpu: u32) -> String {
        let thread = u64::from(vcpu) + 1;
        match self.process {
            Some(process) => format!("p{process:x}.{thread:x}"),
            None => format!("{thread:x}"),
        }
    }

    fn select(&mut self, vcpu: u32) -> Result<()> {
        let thread = self.thread(vcpu);
        match &*self.wire.ask(&format!("Hg{thread}"))? {
            b"OK" => Ok(()),
            [b'E', ..] => Err(Error::new(ErrorKind::NotFound, OP, format!("there is no vCPU {vcpu}"))),
            answer => Err(refused("Hg", answer)),
        }
    }

    fn register(&self, name: &str) -> Result<&Register> {
        let missing = || Error::new(ErrorKind::NotFound, OP, format!("this QEMU's gdbstub has no {name}"));
        self.layout.get(name).ok_or_else(missing)
    }

    fn first_process(&mut self) -> Result<u32> {
        let answer = text(self.wire.ask("qfThreadInfo")?)?;
        let process = answer.strip_prefix("mp").and_then(|rest| rest.split('.').next());
        let process = process.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        process.ok_or_else(|| protocol("lists no threads"))
    }

    /// A document of the target description, which comes in pieces.
    fn description(&mut self, name: &str) -> Result<String> {
        let mut document = Vec::new();
        loop {
            let request = format!("qXfer:features:read:{name}:{:x},7fb", document.len());
            let answer = self.wire.ask(&request)?;
            let (last, piece) = match answer.split_first() {
                Some((b'l', piece)) => (true, piece),
                Some((b'm', piece)) if !piece.is_empty() => (false, piece),
                _ => return Err(refused(name, &answer)),
            };
            document.extend_from_slice(piece);
            if document.len() > DESCRIPTION_LIMIT {
                return Err(protocol("describes its registers without an end"));
            }
            if last {
                return text(document);
            }
        }
    }
}

/// Reads `ENABLE=1,NOIRQ=2,NOTIMER=4`: all that there is. KVM has no NOTIMER.
fn step_bits(answer: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(answer).ok().filter(|text| text.starts_with("ENABLE="))?;
    let bits = text.split(',').filter_map(|word| word.split_once('=')?.1.parse::<u32>().ok());
    Some(bits.fold(STEP, |all, bit| all | bit))
}

/// Whether a stop reply tells of a step that was done: SIGTRAP (5). SIGINT (2) is an interruption.
fn stepped(packet: &[u8]) -> Result<bool> {
    match packet.get(..3) {
        Some(b"T05" | b"S05") => Ok(true),
        Some(b"T02" | b"S02" | b"T00" | b"S00") => Ok(false),
        Some([b'W' | b'X', ..]) => Err(Error::new(ErrorKind::Gone, OP, "QEMU has ended")),
        _ => Err(refused("vCont", packet)),
    }
}

fn text(answer: Vec<u8>) -> Result<String> {
    String::from_utf8(answer).map_err(|_| protocol("sends what is no text"))
}

fn refused(what: &str, answer: &[u8]) -> Error {
    // The name of a document is the peer's too.
    let what = said(what);
    match answer {
        [] => Error::new(ErrorKind::Unsupported, OP, format!("this QEMU's gdbstub has no '{what}'")),
        [b'E', ..] => {
            let answer = said(&String::from_utf8_lossy(answer));
            Error::new(ErrorKind::Invalid, OP, format!("the gdbstub refuses {what} ({answer})"))
        }
        _ => protocol(&format!("gives no answer that makes sense to '{what}'")),
    }
}
