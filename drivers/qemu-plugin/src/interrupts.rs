//! Interrupts and exceptions: which vector it was, of what type, with which error code.

use iced_x86::{Instruction, Register};
use vmtree_agent::{Event, Kind, Reg, Way, flag};

use crate::decode::instruction;
use crate::sense::gpr;
use crate::tracked::Tracked;
use crate::vcpu::Vcpu;

/// The types in the manual's order of their names in vmtree's contract.
mod kind {
    pub const EXTERNAL: u32 = 0;
    pub const NMI: u32 = 1;
    pub const HARDWARE_EXCEPTION: u32 = 2;
    pub const SOFTWARE_INTERRUPT: u32 = 3;
    pub const PRIVILEGED_SOFTWARE_EXCEPTION: u32 = 4;
    pub const SOFTWARE_EXCEPTION: u32 = 5;
}

/// QEMU's `QEMU_PLUGIN_DISCON_EXCEPTION`.
const EXCEPTION: i32 = 2;

/// A delivery, as QEMU sees it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Delivery {
    /// The instruction at `from` caused it.
    Exception,
    /// An interrupt from outside, or one of the exceptions that it tells as such.
    Interrupt,
}

/// Makes one delivery of what QEMU tells. Of some exceptions it tells twice: as an exception when it is raised, where
/// nothing has moved yet, and as an interrupt when it has been delivered; of all else only the latter. What SYSCALL does
/// is raised too, and delivered by no interrupt.
#[derive(Default)]
pub struct Deliveries {
    /// Where an exception was raised that is not delivered yet.
    raised: Option<u64>,
    /// An exception that was told when it had been delivered: not to be told again.
    told: Option<(u64, u64)>,
}

impl Deliveries {
    /// What a discontinuity is; `None` where it is not a delivery, or not a new one.
    pub fn see(&mut self, kind: i32, from: u64, to: u64) -> Option<Delivery> {
        let (raised, told) = (self.raised.take(), self.told.take());
        match (kind == EXCEPTION, from == to) {
            (true, true) => {
                self.raised = Some(from);
                None
            }
            (true, false) => {
                self.told = Some((from, to));
                Some(Delivery::Exception)
            }
            (false, _) if told == Some((from, to)) => None,
            (false, _) if raised == Some(from) => Some(Delivery::Exception),
            (false, _) => Some(Delivery::Interrupt),
        }
    }
}

/// LMA of EFER.
const LONG_MODE: u64 = 1 << 10;

/// The instruction at `rip`, decoded again.
pub fn again(cpu: &dyn Vcpu, rip: u64) -> Option<Instruction> {
    let mut code = [0; 15];
    let whole = cpu.read(rip, &mut code);
    // The last instruction of a page may have nothing mapped after it.
    let left = 0x1000 - (rip as usize & 0xfff);
    let readable = if whole { 15 } else { left.min(15) };
    let code = code.get_mut(..readable)?;
    (whole || cpu.read(rip, code)).then(|| instruction(code, bits(cpu), rip))
}

/// The bits of the code that runs, as far as the interface shows it: a 16-bit segment in protected mode counts as 32.
pub fn bits(cpu: &dyn Vcpu) -> u32 {
    match (cpu.get(Reg::Efer) & LONG_MODE != 0, cpu.get(Reg::Cr0) & 1 != 0) {
        (true, _) => 64,
        (false, true) => 32,
        (false, false) => 16,
    }
}

/// The linear address of an instruction's memory operand.
pub fn address(cpu: &dyn Vcpu, instruction: &Instruction) -> Option<u64> {
    instruction.virtual_address(0, 0, |register, _, _| match register {
        Register::FS => Some(cpu.get(Reg::FsBase)),
        Register::GS => Some(cpu.get(Reg::GsBase)),
        Register::CS if bits(cpu) == 16 => Some(cpu.get(Reg::Cs) << 4),
        Register::DS if bits(cpu) == 16 => Some(cpu.get(Reg::Ds) << 4),
        Register::SS if bits(cpu) == 16 => Some(cpu.get(Reg::Ss) << 4),
        Register::ES if bits(cpu) == 16 => Some(cpu.get(Reg::Es) << 4),
        register if register.is_segment_register() => Some(0),
        register => {
            let value = cpu.get(gpr(register.full_register().number() as u8)?);
            Some(match register.size() {
                8 => value,
                4 => value & 0xffff_ffff,
                _ => value & 0xffff,
            })
        }
    })
}

/// The table that the LIDT at `rip` is about to load: base and limit.
pub fn loaded_table(cpu: &dyn Vcpu, rip: u64) -> Option<(u64, u16)> {
    let instruction = again(cpu, rip)?;
    let at = address(cpu, &instruction)?;
    let mut bytes = [0; 10];
    let size = if bits(cpu) == 64 { 10 } else { 6 };
    if !cpu.read(at, bytes.get_mut(..size)?) {
        return None;
    }
    let [l0, l1, base @ ..] = bytes;
    Some((u64::from_le_bytes(base), u16::from_le_bytes([l0, l1])))
}

/// The handler of a vector, in long mode: Intel SDM volume 3A, figure 7-8.
fn handler(cpu: &dyn Vcpu, (base, limit): (u64, u16), vector: u8) -> Option<u64> {
    let at = u64::from(vector) * 16;
    if at + 15 > u64::from(limit) {
        return None;
    }
    let mut gate = [0; 12];
    if !cpu.read(base.wrapping_add(at), &mut gate) {
        return None;
    }
    let [a, b, _, _, _, flags, c, d, e, f, g, h] = gate;
    (flags & 0x80 != 0).then(|| u64::from_le_bytes([a, b, c, d, e, f, g, h]))
}

/// The vector whose handler is at `to`, and whether it is the only one.
fn vector(cpu: &dyn Vcpu, tracked: &mut Tracked, to: u64) -> Option<(u8, bool)> {
    let table = tracked.idt?;
    if let Some(&known) = tracked.vectors.get(&to)
        && handler(cpu, table, known) == Some(to)
    {
        return Some((known, true));
    }
    let mut found = (0..=255).filter(|vector| handler(cpu, table, *vector) == Some(to));
    let first = found.next()?;
    let only = found.next().is_none();
    if only && tracked.vectors.len() < 256 {
        tracked.vectors.insert(to, first);
    } else if only {
        tracked.vectors.clear();
    }
    Some((first, only))
}

/// The vectors whose exception pushes an error code: Intel SDM volume 3A, table 7-1.
fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

/// The type of an exception at `from` with this vector, by the instruction there.
fn exception_type(cpu: &dyn Vcpu, from: u64, vector: u8) -> u32 {
    let mut code = [0; 2];
    let read = cpu.read(from, &mut code) || cpu.read(from, code.split_at_mut(1).0);
    match (code, vector) {
        ([0xcd, number], vector) if read && number == vector => kind::SOFTWARE_INTERRUPT,
        ([0xcc, _], 3) | ([0xce, _], 4) if read => kind::SOFTWARE_EXCEPTION,
        ([0xf1, _], 1) if read => kind::PRIVILEGED_SOFTWARE_EXCEPTION,
        _ => kind::HARDWARE_EXCEPTION,
    }
}

/// The event of a delivery that went from `from` to the handler at `to`; `None` outside long mode, or where no vector
/// has that handler.
pub fn event(cpu: &dyn Vcpu, tracked: &mut Tracked, delivery: Delivery, from: u64, to: u64) -> Option<Event> {
    if cpu.get(Reg::Efer) & LONG_MODE == 0 {
        return None;
    }
    let (vector, only) = vector(cpu, tracked, to)?;
    let mut event = Event::new(Kind::Interrupt, Way::Once, cpu.number());
    (event.rip, event.cr3) = (from, cpu.get(Reg::Cr3));
    // QEMU tells of most exceptions as of interrupts: below 32 the vector says more (Intel SDM volume 3A, 7.2).
    let kind = match (delivery, vector) {
        (_, 2) => kind::NMI,
        (_, 0..32) | (Delivery::Exception, _) => exception_type(cpu, from, vector),
        (Delivery::Interrupt, _) => kind::EXTERNAL,
    };
    if !only {
        event.flags |= flag::NO_VECTOR;
    }
    event.index = u32::from(vector) | kind << 8;
    let mut error = [0; 8];
    let coded = kind == kind::HARDWARE_EXCEPTION && has_error_code(vector);
    if coded && cpu.read(cpu.get(Reg::Rsp), &mut error) {
        event.extra = u64::from_le_bytes(error) as u32;
        event.flags |= flag::ERROR;
    }
    if kind == kind::HARDWARE_EXCEPTION && vector == 14 {
        event.b = cpu.get(Reg::Cr2);
        event.flags |= flag::CR2;
    }
    Some(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_delivery_counts_once() {
        let mut seen = Deliveries::default();
        // Raised, then delivered.
        assert_eq!(seen.see(2, 7, 7), None);
        assert_eq!(seen.see(1, 7, 100), Some(Delivery::Exception));
        // From outside.
        assert_eq!(seen.see(1, 7, 100), Some(Delivery::Interrupt));
        // Told both ways after its delivery.
        assert_eq!(seen.see(2, 8, 100), Some(Delivery::Exception));
        assert_eq!(seen.see(1, 8, 100), None);
        // Raised and lost, then another from outside.
        assert_eq!(seen.see(2, 9, 9), None);
        assert_eq!(seen.see(1, 10, 100), Some(Delivery::Interrupt));
    }
}
