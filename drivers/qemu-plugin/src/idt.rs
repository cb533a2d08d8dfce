//! The interrupt descriptor table: which vectors lead to a handler.

use vmtree_agent::Reg;

use crate::tracked::Tracked;
use crate::vcpu::Vcpu;

/// How the processor reads the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    Real,
    Protected,
    Long,
}

impl Mode {
    /// That of a vCPU. Its code may be of 32 bits in long mode: the table is not.
    pub fn of(cpu: &dyn Vcpu) -> Self {
        /// LMA of EFER.
        const LONG_MODE: u64 = 1 << 10;
        match (cpu.get(Reg::Efer) & LONG_MODE != 0, cpu.get(Reg::Cr0) & 1 != 0) {
            (true, _) => Self::Long,
            (false, true) => Self::Protected,
            (false, false) => Self::Real,
        }
    }

    /// The bytes of a gate.
    fn gate(self) -> usize {
        match self {
            Self::Real => 4,
            Self::Protected => 8,
            Self::Long => 16,
        }
    }

    /// Where a gate leads: Intel SDM volume 3A, figures 7-2 and 7-8, and volume 3B, 22.1.4. `None` of one that is not
    /// present, of a task gate, and of one for 16 bits.
    fn handler(self, gate: &[u8]) -> Option<u64> {
        let part = |at: usize, bytes: usize| {
            let mut word = [0; 8];
            word.get_mut(..bytes)?.copy_from_slice(gate.get(at..at + bytes)?);
            Some(u64::from_le_bytes(word))
        };
        let flags = if self == Self::Real { 0x8e } else { *gate.get(5)? };
        if flags & 0x9e != 0x8e {
            return None;
        }
        Some(match self {
            Self::Real => part(0, 2)? + (part(2, 2)? << 4),
            Self::Protected => part(0, 2)? | part(6, 2)? << 16,
            Self::Long => part(0, 2)? | part(6, 2)? << 16 | part(8, 4)? << 32,
        })
    }
}

/// A table as it was loaded: base and limit.
pub type Table = (u64, u16);

/// The table of a vCPU that has loaded none, which only real mode can live with: Intel SDM volume 3A, table 10-1.
const AFTER_RESET: Table = (0, 0x3ff);

/// As much of the table as there is and can be read: the pages may have other rights, and other neighbours.
fn read(cpu: &dyn Vcpu, (base, limit): Table, most: usize) -> Vec<u8> {
    let size = (usize::from(limit) + 1).min(most);
    let mut bytes = vec![0; size];
    let mut done = 0;
    while done < size {
        let at = base.wrapping_add(done as u64);
        let end = size.min(done + 0x1000 - (at as usize & 0xfff));
        if !bytes.get_mut(done..end).is_some_and(|part| cpu.read(at, part)) {
            break;
        }
        done = end;
    }
    bytes.truncate(done);
    bytes
}

/// The vectors whose handler is at `to`; none where the table is not known or has no such handler.
pub fn vectors(cpu: &dyn Vcpu, tracked: &mut Tracked, mode: Mode, to: u64) -> Vec<u8> {
    let Some(table) = tracked.idt.or((mode == Mode::Real).then_some(AFTER_RESET)) else { return Vec::new() };
    let size = mode.gate();
    if let Some(&known) = tracked.vectors.get(&to) {
        let mut gate = [0; 16];
        let at = usize::from(known) * size;
        let there = at + size <= usize::from(table.1) + 1;
        if there
            && let Some(gate) = gate.get_mut(..size)
            && cpu.read(table.0.wrapping_add(at as u64), gate)
            && mode.handler(gate) == Some(to)
        {
            return vec![known];
        }
    }
    let bytes = read(cpu, table, size * 256);
    let gates = bytes.chunks_exact(size).zip(0..=u8::MAX);
    let found: Vec<u8> =
        gates.filter(|(gate, _)| mode.handler(gate) == Some(to)).map(|(_, vector)| vector).collect();
    if let [only] = *found {
        if tracked.vectors.len() >= 256 {
            tracked.vectors.clear();
        }
        tracked.vectors.insert(to, only);
    }
    found
}
