//! Interrupts and exceptions: which vector it was, of what type, with which error code.

use iced_x86::{Code, Instruction, Register};
use vmtree_agent::{Event, Kind, Reg, Way, flag};

use crate::decode::instruction;
use crate::idt::{self, Mode};
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
/// nothing has moved yet, and as an interrupt when it has been delivered; of all else only the latter. One that is raised
/// need not be delivered. SYSCALL and its like are neither.
#[derive(Default)]
pub struct Deliveries {
    /// An exception was raised that is not delivered yet.
    raised: bool,
    /// An exception that was told when it had been delivered: not to be told again.
    told: Option<(u64, u64)>,
}

impl Deliveries {
    /// What a discontinuity is; `None` where it is not a delivery, or not a new one.
    pub fn see(&mut self, kind: i32, from: u64, to: u64) -> Option<Delivery> {
        let (raised, told) = (std::mem::take(&mut self.raised), self.told.take());
        match (kind == EXCEPTION, from == to) {
            (true, true) => {
                self.raised = true;
                None
            }
            (true, false) => {
                self.told = Some((from, to));
                Some(Delivery::Exception)
            }
            (false, _) if told == Some((from, to)) => None,
            // Where it was raised is told less exactly than where it was delivered.
            (false, _) if raised => Some(Delivery::Exception),
            (false, _) => Some(Delivery::Interrupt),
        }
    }
}

/// The instruction at `rip`, decoded again.
pub fn again(cpu: &dyn Vcpu, rip: u64) -> Option<Instruction> {
    let bits = bits(cpu);
    let at = if bits == 16 { rip.wrapping_add(cpu.get(Reg::Cs) << 4) } else { rip };
    let mut code = [0; 15];
    let whole = cpu.read(at, &mut code);
    // The last instruction of a page may have nothing mapped after it.
    let left = 0x1000 - (at as usize & 0xfff);
    let readable = if whole { 15 } else { left.min(15) };
    let code = code.get_mut(..readable)?;
    (whole || cpu.read(at, code)).then(|| instruction(code, bits, rip))
}

/// The bits of the code that runs, as far as the interface shows it: a 16-bit segment in protected mode counts as 32.
pub fn bits(cpu: &dyn Vcpu) -> u32 {
    match Mode::of(cpu) {
        Mode::Long => 64,
        Mode::Protected => 32,
        Mode::Real => 16,
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
    // With 16-bit operands the base has 24 bits.
    let mask = if instruction.code() == Code::Lidt_m1632_16 { 0xff_ffff } else { u64::MAX };
    Some((u64::from_le_bytes(base) & mask, u16::from_le_bytes([l0, l1])))
}

/// The vectors whose exception pushes an error code: Intel SDM volume 3A, table 7-1.
fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

/// The top of the stack that a delivery has left: an error code or none, the return address, the code segment; the
/// latter two alone, of 16 bits each, in real mode.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Frame {
    words: [u32; 6],
    /// Whether there is an error code, where the stack itself tells.
    coded: Option<bool>,
}

impl Frame {
    fn of(cpu: &dyn Vcpu, mode: Mode) -> Self {
        let mut bytes = [0; 24];
        let at = match (mode, cpu.get(Reg::Rsp)) {
            (Mode::Real, rsp) => (cpu.get(Reg::Ss) << 4).wrapping_add(rsp & 0xffff),
            (_, rsp) => rsp,
        };
        let size = if mode == Mode::Long { 24 } else { 12 };
        if !bytes.get_mut(..size).is_some_and(|bytes| cpu.read(at, bytes)) {
            return Self::default();
        }
        let mut words = [0; 6];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = bytes.iter().rfold(0, |sum, byte| sum << 8 | u32::from(*byte));
        }
        // In long mode the processor aligns the stack to 16 bytes, then pushes five quadwords, or six with an error code
        // (Intel SDM volume 3A, 7.14.2).
        Self { words, coded: (mode == Mode::Long).then_some(at & 8 == 0) }
    }

    /// The base of the code segment that was left. Outside real mode code is as good as always flat.
    fn base(&self, mode: Mode) -> u64 {
        let [ip_and_cs, ..] = self.words;
        if mode == Mode::Real { u64::from(ip_and_cs >> 16 << 4) } else { 0 }
    }

    /// The privilege level of the code that was left.
    fn level(&self, mode: Mode, coded: bool) -> u8 {
        let [_, a, b, _, c, _] = self.words;
        let cs = match (mode, coded) {
            (Mode::Real, _) => 0,
            (Mode::Protected, false) => a,
            (Mode::Protected, true) | (Mode::Long, false) => b,
            (Mode::Long, true) => c,
        };
        (cs & 3) as u8
    }
}

/// The vector of a delivery, of those that its handler serves: the one that fits, if there is only one.
fn choose(found: &[u8], delivery: Delivery, code: [u8; 2], frame: Frame) -> Option<u8> {
    if let [only] = found {
        return Some(*only);
    }
    let fits = |vector: &u8| match (delivery, code) {
        (Delivery::Exception, [0xcd, number]) if frame.coded != Some(true) => *vector == number,
        (Delivery::Exception, _) => {
            *vector < 32 && frame.coded.is_none_or(|coded| coded == has_error_code(*vector))
        }
        (Delivery::Interrupt, _) => *vector >= 32 || matches!(vector, 2 | 18),
    };
    let mut fitting = found.iter().filter(|vector| fits(vector));
    let first = fitting.next()?;
    fitting.next().is_none().then_some(*first)
}

/// The type of a delivery.
fn type_of(delivery: Delivery, vector: Option<u8>, code: [u8; 2], frame: Frame, mode: Mode) -> u32 {
    // QEMU may keep quiet about an exception that it raises, but in long mode nothing else has a vector below 32.
    let exception = match (delivery, vector) {
        (_, Some(2)) => return kind::NMI,
        (Delivery::Exception, None | Some(0..32)) => true,
        (Delivery::Exception, Some(vector)) => code == [0xcd, vector],
        (Delivery::Interrupt, Some(18)) => mode != Mode::Real,
        (Delivery::Interrupt, Some(0..32)) => mode == Mode::Long,
        (Delivery::Interrupt, _) => false,
    };
    if !exception {
        return kind::EXTERNAL;
    }
    match code {
        _ if frame.coded == Some(true) => kind::HARDWARE_EXCEPTION,
        [0xcd, number] if vector.is_none_or(|vector| vector == number) => kind::SOFTWARE_INTERRUPT,
        [0xcc, _] if vector.is_none_or(|vector| vector == 3) => kind::SOFTWARE_EXCEPTION,
        [0xce, _] if vector.is_none_or(|vector| vector == 4) => kind::SOFTWARE_EXCEPTION,
        [0xf1, _] if vector.is_none_or(|vector| vector == 1) => kind::PRIVILEGED_SOFTWARE_EXCEPTION,
        _ => kind::HARDWARE_EXCEPTION,
    }
}

/// The first two bytes of the instruction at `from`; zeros where it can't be read.
fn code_at(cpu: &dyn Vcpu, from: u64) -> [u8; 2] {
    let mut code = [0; 2];
    // The second may lie in a page that is not there.
    let read = cpu.read(from, &mut code) || cpu.read(from, code.split_at_mut(1).0);
    if read { code } else { [0; 2] }
}

/// The event of a delivery that went from `from` to the handler at `to`.
pub fn event(cpu: &dyn Vcpu, tracked: &mut Tracked, delivery: Delivery, from: u64, to: u64) -> Event {
    let mode = Mode::of(cpu);
    let frame = Frame::of(cpu, mode);
    // What comes from outside has nothing to do with it.
    let code = if delivery == Delivery::Exception { code_at(cpu, from) } else { [0; 2] };
    let vector = choose(&idt::vectors(cpu, tracked, mode, to), delivery, code, frame);
    let kind = type_of(delivery, vector, code, frame, mode);
    let mut event = Event::new(Kind::Interrupt, Way::Once, cpu.number());
    // QEMU tells where it was in linear addresses.
    (event.rip, event.cr3) = (from.wrapping_sub(frame.base(mode)), cpu.get(Reg::Cr3));
    event.index = u32::from(vector.unwrap_or(0)) | kind << 8;
    if vector.is_none() {
        event.flags |= flag::NO_VECTOR;
    }
    let hardware = kind == kind::HARDWARE_EXCEPTION;
    let expected = || mode == Mode::Protected && hardware && vector.is_some_and(has_error_code);
    let coded = frame.coded.unwrap_or_else(expected);
    event.cpl = frame.level(mode, coded);
    if coded && hardware {
        [event.extra, ..] = frame.words;
        event.flags |= flag::ERROR;
    }
    if hardware && vector == Some(14) {
        event.b = cpu.get(Reg::Cr2);
        event.flags |= flag::CR2;
    }
    event
}

/// What a watch of one vector compares: nothing fits a vector that is not known.
pub fn index(event: &Event) -> u32 {
    if event.flags & flag::NO_VECTOR == 0 { event.index & 0xff } else { u32::MAX }
}

#[cfg(test)]
#[path = "interrupts_tests.rs"]
mod tests;
