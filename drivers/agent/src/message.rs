//! The messages, each way.

use crate::code::{Reader, Result, Write};
use crate::verdict::{decode_registers, encode_registers};
use crate::{Code, Event, Malformed, Offer, Reg, Verdict, Wanted, frame};

/// The first bytes of a hello, each way.
pub const MAGIC: [u8; 8] = *b"VMTREEAG";
/// The version of this protocol. Both sides must have the same.
pub const VERSION: u16 = 1;

/// What an agent says of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hello {
    /// What it is, in a few words: the monitor and the interface it works through.
    pub name: String,
    /// How many vCPUs the VM has.
    pub vcpus: u32,
    /// What it can do.
    pub offers: Vec<Offer>,
}

/// From vmtree to the agent.
#[derive(Clone, Debug, Eq, PartialEq)]
#[allow(missing_docs, reason = "`id` is given back in the answer; 0 asks for none")]
pub enum ToAgent {
    /// The first message, once.
    Hello { version: u16 },
    /// Replaces all that is wanted.
    Watch { id: u32, wanted: Wanted },
    /// Answers a held event.
    Answer { id: u32, seq: u64, verdict: Verdict },
    /// Asks for all registers of the vCPU that a held event is on.
    Read { id: u32, seq: u64 },
    /// Sets some of them.
    Write { id: u32, seq: u64, registers: Vec<(Reg, u64)> },
    /// I am there.
    Beat,
}

/// From the agent to vmtree.
#[derive(Clone, Debug, Eq, PartialEq)]
#[allow(missing_docs, reason = "`id` is that of the request")]
pub enum ToClient {
    /// The first message, once.
    Hello { version: u16, hello: Hello },
    /// Instead of a hello: why not, and the end of the stream.
    Refused { why: String },
    /// An event.
    Event(Event),
    /// What became of a request.
    Done { id: u32, code: Code, why: String },
    /// The registers that were asked for.
    Registers { id: u32, registers: Vec<(Reg, u64)> },
    /// I am there.
    Beat,
}

fn hello(bytes: &mut Reader) -> Result<u16> {
    if bytes.bytes(MAGIC.len())? != MAGIC {
        return Err(Malformed("it is no agent and no client of one"));
    }
    bytes.u16()
}

impl ToAgent {
    /// Adds the message to `out` as a frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello { version } => frame::put(1, out, |out| {
                out.extend_from_slice(&MAGIC);
                out.u16(*version);
            }),
            Self::Watch { id, wanted } => frame::put(2, out, |out| {
                out.u32(*id);
                wanted.encode(out);
            }),
            Self::Answer { id, seq, verdict } => frame::put(3, out, |out| {
                out.u32(*id);
                out.u64(*seq);
                verdict.encode(out);
            }),
            Self::Read { id, seq } => frame::put(4, out, |out| {
                out.u32(*id);
                out.u64(*seq);
            }),
            Self::Write { id, seq, registers } => frame::put(5, out, |out| {
                out.u32(*id);
                out.u64(*seq);
                encode_registers(registers, out);
            }),
            Self::Beat => frame::put(6, out, |_| {}),
        }
    }

    /// A message from a frame's type and body.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(kind: u16, body: &[u8]) -> Result<Self> {
        let mut bytes = Reader::new(body);
        let message = match kind {
            1 => Self::Hello { version: hello(&mut bytes)? },
            2 => Self::Watch { id: bytes.u32()?, wanted: Wanted::decode(&mut bytes)? },
            3 => Self::Answer { id: bytes.u32()?, seq: bytes.u64()?, verdict: Verdict::decode(&mut bytes)? },
            4 => Self::Read { id: bytes.u32()?, seq: bytes.u64()? },
            5 => {
                Self::Write { id: bytes.u32()?, seq: bytes.u64()?, registers: decode_registers(&mut bytes)? }
            }
            6 => Self::Beat,
            _ => return Err(Malformed("a message to the agent has no known type")),
        };
        bytes.end()?;
        Ok(message)
    }
}

impl ToClient {
    /// Adds the message to `out` as a frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello { version, hello } => frame::put(129, out, |out| {
                out.extend_from_slice(&MAGIC);
                out.u16(*version);
                out.u32(hello.vcpus);
                out.text(&hello.name);
                Offer::encode_all(&hello.offers, out);
            }),
            Self::Refused { why } => frame::put(130, out, |out| out.text(why)),
            Self::Event(event) => frame::put(131, out, |out| event.encode(out)),
            Self::Done { id, code, why } => frame::put(132, out, |out| {
                out.u32(*id);
                out.u8(*code as u8);
                out.text(why);
            }),
            Self::Registers { id, registers } => frame::put(133, out, |out| {
                out.u32(*id);
                encode_registers(registers, out);
            }),
            Self::Beat => frame::put(134, out, |_| {}),
        }
    }

    /// A message from a frame's type and body.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(kind: u16, body: &[u8]) -> Result<Self> {
        let mut bytes = Reader::new(body);
        let message = match kind {
            129 => Self::decode_hello(&mut bytes)?,
            130 => Self::Refused { why: bytes.text()? },
            131 => Self::Event(Event::decode(&mut bytes)?),
            132 => Self::Done { id: bytes.u32()?, code: Code::try_from(bytes.u8()?)?, why: bytes.text()? },
            133 => Self::Registers { id: bytes.u32()?, registers: decode_registers(&mut bytes)? },
            134 => Self::Beat,
            _ => return Err(Malformed("a message of the agent has no known type")),
        };
        bytes.end()?;
        Ok(message)
    }

    fn decode_hello(bytes: &mut Reader) -> Result<Self> {
        let version = hello(bytes)?;
        let (vcpus, name) = (bytes.u32()?, bytes.text()?);
        let hello = Hello { name, vcpus, offers: Offer::decode_all(bytes)? };
        Ok(Self::Hello { version, hello })
    }
}
