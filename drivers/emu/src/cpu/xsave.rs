//! XCR0 and the state that XSAVE manages: x87 and SSE, in the standard form (Intel SDM volume 1, chapter 13).

use iced_x86::{Instruction, Register};
use vmtree_api::events::EventKind;

use super::Exception;
use super::bits::{CR0_TS, CR4_OSXSAVE};
use super::check;
use super::exec::operand::fault;
use super::intercept::Register as Watched;
use super::vcpu::{Core, GP0, Outcome};

/// The bits of XCR0 that can be set.
pub const STATES: u64 = X87_STATE | SSE_STATE;
/// The bytes of the area: the legacy region and the header.
pub const AREA: usize = 576;
const X87_STATE: u64 = 1;
const SSE_STATE: u64 = 2;

/// Where things lie in the area (table 13-1).
const MXCSR: usize = 24;
const REGISTERS: usize = 32;
const XMM: usize = 160;
const XMM_END: usize = 416;
const HEADER: usize = 512;
/// The bits that MXCSR has.
const MXCSR_MASK: u32 = 0xffff;
const MXCSR_INIT: u32 = 0x1f80;

/// The x87 part of the legacy region. This machine has no x87 instructions: it keeps what XRSTOR brings.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct X87([u8; XMM]);

impl Default for X87 {
    fn default() -> Self {
        // FCW is 0x037f, all else 0 (13.6).
        let mut image = [0; XMM];
        image[..2].copy_from_slice(&0x037f_u16.to_le_bytes());
        Self(image)
    }
}

/// The little-endian word at the start of these bytes.
fn word(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

impl Core<'_> {
    fn osxsave(&self) -> Outcome {
        match self.vcpu.cpu.regs.cr4 & CR4_OSXSAVE {
            0 => Err(Exception::INVALID_OPCODE),
            _ => Ok(()),
        }
    }

    /// XGETBV.
    pub fn xgetbv(&mut self) -> Outcome {
        self.osxsave()?;
        if self.gpr(Register::ECX) != 0 {
            return Err(GP0);
        }
        self.set_pair(self.vcpu.cpu.regs.xcr0);
        Ok(())
    }

    /// XSETBV.
    pub fn xsetbv(&mut self) -> Outcome {
        self.osxsave()?;
        self.privileged()?;
        if self.gpr(Register::ECX) != 0 {
            return Err(GP0);
        }
        let value = self.gpr(Register::EDX) << 32 | self.gpr(Register::EAX);
        let old = self.vcpu.cpu.regs.xcr0;
        let Some(value) = self.ask_to(Watched::control(EventKind::Xcr0), old, value)? else { return Ok(()) };
        self.vcpu.cpu.regs.xcr0 = check::xcr0(value).map_err(|_| GP0)?;
        Ok(())
    }

    /// The area, and which states are meant.
    fn meant(&mut self, ins: &Instruction) -> Result<(u64, u64), Exception> {
        self.osxsave()?;
        if self.vcpu.cpu.regs.cr0 & CR0_TS != 0 {
            return Err(Exception::plain(7));
        }
        let area = self.address(ins);
        if !area.is_multiple_of(64) {
            return Err(GP0);
        }
        let asked = self.gpr(Register::EDX) << 32 | self.gpr(Register::EAX);
        Ok((area, asked & self.vcpu.cpu.regs.xcr0))
    }

    /// The states that are not in their first configuration.
    fn in_use(&self) -> u64 {
        let cpu = &self.vcpu.cpu;
        let x87 = if self.vcpu.x87 == X87::default() { 0 } else { X87_STATE };
        let sse = cpu.mxcsr != MXCSR_INIT || cpu.xmm.iter().any(|register| *register != 0);
        x87 | if sse { SSE_STATE } else { 0 }
    }

    /// XSAVE and XSAVE64.
    pub fn xsave(&mut self, ins: &Instruction) -> Outcome {
        let (area, states) = self.meant(ins)?;
        let mut header = [0; 8];
        self.read(area.wrapping_add(HEADER as u64), &mut header).map_err(|error| fault(ins, error))?;
        let saved = u64::from_le_bytes(header) & !states | self.in_use() & states;
        let mut image = [0; AREA];
        image[..XMM].copy_from_slice(&self.vcpu.x87.0);
        image[MXCSR..MXCSR + 4].copy_from_slice(&self.vcpu.cpu.mxcsr.to_le_bytes());
        image[MXCSR + 4..REGISTERS].copy_from_slice(&MXCSR_MASK.to_le_bytes());
        for (register, place) in self.vcpu.cpu.xmm.iter().zip(image[XMM..XMM_END].chunks_mut(16)) {
            place.copy_from_slice(&register.to_le_bytes());
        }
        image[HEADER..HEADER + 8].copy_from_slice(&saved.to_le_bytes());
        let mut ranges = Vec::new();
        if states & X87_STATE != 0 {
            ranges.extend([0..MXCSR, REGISTERS..96, 96..XMM]);
        }
        if states & SSE_STATE != 0 {
            ranges.push(MXCSR..REGISTERS);
            ranges.extend((XMM..XMM_END).step_by(64).map(|at| at..at + 64));
        }
        ranges.push(HEADER..HEADER + 8);
        let parts: Vec<(u64, &[u8])> =
            ranges.into_iter().map(|range| (area.wrapping_add(range.start as u64), &image[range])).collect();
        self.write_parts(&parts).map_err(|error| fault(ins, error))
    }

    /// XRSTOR and XRSTOR64. States that the area does not have get their first configuration.
    pub fn xrstor(&mut self, ins: &Instruction) -> Outcome {
        let (area, states) = self.meant(ins)?;
        let mut image = [0; AREA];
        self.read(area.wrapping_add(HEADER as u64), &mut image[HEADER..])
            .map_err(|error| fault(ins, error))?;
        let saved = word(&image[HEADER..]);
        // Bytes 23:8 of the header are zeros in the standard form.
        let standard = image[HEADER + 8..HEADER + 24].iter().all(|byte| *byte == 0);
        if !standard || saved & !self.vcpu.cpu.regs.xcr0 != 0 {
            return Err(GP0);
        }
        let mut ranges = Vec::new();
        if states & saved & X87_STATE != 0 {
            ranges.extend([0..MXCSR, REGISTERS..96, 96..XMM]);
        }
        if states & SSE_STATE != 0 {
            ranges.push(MXCSR..REGISTERS);
        }
        if states & saved & SSE_STATE != 0 {
            ranges.extend((XMM..XMM_END).step_by(64).map(|at| at..at + 64));
        }
        for range in ranges {
            let at = area.wrapping_add(range.start as u64);
            self.read(at, &mut image[range]).map_err(|error| fault(ins, error))?;
        }
        let mxcsr = word(&image[MXCSR..MXCSR + 4]) as u32;
        if mxcsr & !MXCSR_MASK != 0 {
            return Err(GP0);
        }
        self.restore(&image, states, saved, mxcsr);
        Ok(())
    }

    fn restore(&mut self, image: &[u8; AREA], states: u64, saved: u64, mxcsr: u32) {
        if states & X87_STATE != 0 {
            let mut x87 = X87::default();
            if saved & X87_STATE != 0 {
                x87.0.copy_from_slice(&image[..XMM]);
                x87.0[MXCSR..REGISTERS].fill(0);
            }
            self.vcpu.x87 = x87;
        }
        if states & SSE_STATE != 0 {
            self.vcpu.cpu.mxcsr = mxcsr;
            // Where the area has none, these bytes were not read and are zeros.
            for (register, place) in self.vcpu.cpu.xmm.iter_mut().zip(image[XMM..XMM_END].chunks(16)) {
                *register = place.iter().rev().fold(0, |all, byte| all << 8 | u128::from(*byte));
            }
        }
    }
}
