//! What an instruction touches of memory, told before it is executed.

use vmtree_api::{Error, ErrorKind, PAGE_SIZE, Result, ViewId};

use super::code::{self, Operand};
use crate::events::engine::Parked;
use crate::events::wire::{Cause, General, Mode, access};
use crate::world::World;

const OP: &str = "answer";
/// What an instruction writes at most whose operand has no size of its own: XSAVE of all that there is, which is 11 KiB.
const LARGEST: usize = 0x3000;
/// The bytes of a value.
const VALUE: usize = 16;
/// The bytes of an entry of a page table.
const ENTRY: usize = 8;

/// A piece of memory in one of the guest's frames.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Part {
    /// The frame.
    pub frame: u64,
    /// Where in it.
    pub offset: usize,
    /// How much.
    pub bytes: usize,
    /// How much of the operand comes before it.
    pub before: usize,
}

impl Part {
    /// What of an operand's value lies here.
    #[must_use]
    pub fn of(&self, value: &[u8]) -> Vec<u8> {
        (self.before..self.before + self.bytes).map(|n| value.get(n).copied().unwrap_or(0)).collect()
    }
}

/// How much an operand takes at most.
fn length(operand: &Operand) -> usize {
    if operand.bytes == 0 { LARGEST } else { operand.bytes }
}

fn lacks<T>(why: &str) -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, OP, why))
}

impl World {
    /// What a held access, and its instruction with it, may write: its frame, and the pieces of others.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where that can't be told.
    pub fn written(&self, parked: &Parked, general: &General) -> Result<Vec<Part>> {
        let Cause::Access { gfn, gla, flags, .. } = parked.request.cause else { return Ok(Vec::new()) };
        let whole = Part { frame: gfn, offset: 0, bytes: PAGE_SIZE as usize, before: 0 };
        let mut parts = vec![whole];
        // The processor itself writes an entry of a page table: all else the instruction does.
        if flags & access::FAULT_IN_GPT != 0 {
            return Ok(parts);
        }
        let (view, mode) = (parked.event.view, &parked.mode);
        let instruction = self.instruction(view, mode, parked.request.rip);
        let operands = instruction.as_ref().map(|it| code::operands(it, mode, general));
        let written: Vec<Operand> =
            operands.iter().flatten().filter(|operand| operand.written).copied().collect();
        let unread = if instruction.is_none() { LARGEST } else { 1 };
        let longest = written.iter().map(length).max().unwrap_or(unread);
        let mut areas = Vec::new();
        for operand in &written {
            let Some(at) = operand.at else {
                return lacks(
                    "where the instruction writes is in vector registers: it can't be denied, only continued",
                );
            };
            areas.push((at, length(operand)));
        }
        if flags & access::GLA_VALID != 0 {
            areas.push((gla, longest));
        }
        for part in areas.iter().flat_map(|(at, bytes)| self.parts(view, mode, *at, *bytes)) {
            if !parts.iter().any(|known| known.frame == part.frame) {
                parts.push(part);
            }
        }
        Ok(parts)
    }

    /// Where the data lie that a held access reads.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where that can't be told, or the instruction writes memory too.
    pub fn read(&self, parked: &Parked, general: &General) -> Result<Vec<Part>> {
        let Cause::Access { gfn, offset, gla, flags } = parked.request.cause else { return Ok(Vec::new()) };
        let (view, mode) = (parked.event.view, &parked.mode);
        let Some(instruction) = self.instruction(view, mode, parked.request.rip) else {
            return lacks("the instruction can't be read, so that its data can't be replaced");
        };
        let operands = code::operands(&instruction, mode, general);
        if operands.iter().any(|operand| operand.written) {
            return lacks(
                "Xen's emulator can't do this instruction on this view, and it writes memory as well: its data can't be replaced",
            );
        }
        let offset = (offset % PAGE_SIZE) as usize;
        let room = PAGE_SIZE as usize - offset;
        let here = |bytes: usize| Part { frame: gfn, offset, bytes: bytes.min(room), before: 0 };
        if flags & access::FAULT_IN_GPT != 0 {
            return Ok(vec![here(ENTRY)]);
        }
        let covers = |operand: &&Operand| {
            let into = operand.at.map(|at| gla.wrapping_sub(at));
            into.is_some_and(|into| into < operand.bytes as u64)
        };
        let source = operands.iter().find(covers).and_then(|operand| Some((operand.at?, operand.bytes)));
        let (at, bytes) = source.unwrap_or((gla, VALUE));
        let valid = flags & access::GLA_VALID != 0;
        let mut parts = if valid { self.parts(view, mode, at, bytes) } else { Vec::new() };
        if !parts.iter().any(|part| part.frame == gfn) {
            parts = vec![here(bytes)];
        }
        Ok(parts)
    }

    /// The frames of an operand, as far as it is known.
    pub fn frames_of(&self, view: ViewId, mode: &Mode, operand: &Operand) -> Vec<u64> {
        let Some(at) = operand.at else { return Vec::new() };
        self.parts(view, mode, at, length(operand)).iter().map(|part| part.frame).collect()
    }

    /// An area of a vCPU's memory, frame by frame, without what is not there.
    fn parts(&self, view: ViewId, mode: &Mode, at: u64, bytes: usize) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut before = 0;
        while before < bytes {
            let gva = at.wrapping_add(before as u64);
            let offset = (gva % PAGE_SIZE) as usize;
            let length = (PAGE_SIZE as usize - offset).min(bytes - before);
            if let Some(frame) = self.translate(view, mode, gva).map(|gpa| gpa / PAGE_SIZE)
                && (self.views.frame(view, frame) != frame || self.ram(OP, frame).is_ok())
            {
                parts.push(Part { frame, offset, bytes: length, before });
            }
            before += length;
        }
        parts
    }
}
