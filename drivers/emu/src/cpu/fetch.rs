//! Fetching and decoding. Decoded instructions are remembered, and used again only where memory still holds the
//! very same bytes: code may change under us at any time, also from outside.

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

use super::linear::Linear;
use super::{Cpu, Exception};

/// The longest instruction (Intel SDM volume 2, 2.3.11).
const LONGEST: usize = 15;
const SLOTS: usize = 1024;

#[derive(Clone, Copy)]
struct Slot {
    rip: u64,
    /// The bytes, the first one lowest.
    code: u128,
    instruction: Instruction,
}

/// The instructions that a vCPU remembers.
pub struct Decoded(Vec<Slot>);

impl Default for Decoded {
    fn default() -> Self {
        // An instruction of length 0 is never a hit.
        Self(vec![Slot { rip: 0, code: 0, instruction: Instruction::new() }; SLOTS])
    }
}

impl Decoded {
    /// The instruction at RIP.
    ///
    /// # Errors
    /// The exception of the fetch, or #UD for what is no instruction.
    pub fn fetch(&mut self, cpu: &Cpu, linear: &mut Linear<'_>) -> Result<Instruction, Exception> {
        let rip = cpu.regs.rip;
        let here = LONGEST.min(0x1000 - (rip & 0xfff) as usize);
        let mut bytes = [0; 16];
        linear.fetch(cpu, rip, &mut bytes[..here])?;
        let code = u128::from_le_bytes(bytes);
        let slot = &mut self.0[(rip ^ rip >> 10) as usize % SLOTS];
        let length = slot.instruction.len();
        if slot.rip == rip && (1..=here).contains(&length) && (slot.code ^ code) << (128 - 8 * length) == 0 {
            return Ok(slot.instruction);
        }
        let mut found = decode(rip, &bytes[..here]);
        if found == Err(DecoderError::NoMoreBytes) && here < LONGEST {
            linear.fetch(cpu, rip.wrapping_add(here as u64), &mut bytes[here..LONGEST])?;
            found = decode(rip, &bytes[..LONGEST]);
        }
        let instruction = found.map_err(|_| Exception::INVALID_OPCODE)?;
        *slot = Slot { rip, code, instruction };
        Ok(instruction)
    }
}

fn decode(rip: u64, bytes: &[u8]) -> Result<Instruction, DecoderError> {
    let mut decoder = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    match decoder.last_error() {
        DecoderError::None => Ok(instruction),
        error => Err(error),
    }
}
