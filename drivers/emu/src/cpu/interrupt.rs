//! Delivery of interrupts and exceptions through the IDT, in 64-bit mode (Intel SDM volume 3A, chapter 6).

use super::Exception;
use super::bits::{RFLAGS_IF, RFLAGS_NT, RFLAGS_RF, RFLAGS_TF, RFLAGS_VM, canonical};
use super::descriptor::{about, empty_stack, vector};
use super::grants::Mid;
use super::mmu::Mode;
use super::step::Stepped;
use super::vcpu::{Activity, Core, Shadow};

const DOUBLE_FAULT: u8 = 8;
const PAGE_FAULT: u8 = 14;
/// In an error code: the index is one of the IDT.
const IDT: u32 = 2;

/// Where an event comes from, which decides how it is checked and nested.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// An interrupt from outside.
    External,
    /// A non-maskable interrupt.
    Nmi,
    /// An exception that the CPU raised.
    Exception,
    /// INT n: the gate's DPL counts.
    Software,
    /// INT3: so it does.
    SoftwareException,
    /// INT1.
    Privileged,
}

/// Something to deliver.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Vector, error code and faulting address.
    pub what: Exception,
    /// Where it comes from.
    pub origin: Origin,
    /// Where the handler returns to.
    pub rip: u64,
    /// Whether it was injected from outside, which raises no event of its own.
    pub injected: bool,
}

impl Origin {
    /// Whether it is an instruction that the code that runs is allowed or not.
    fn is_software(self) -> bool {
        matches!(self, Self::Software | Self::SoftwareException)
    }
}

/// A fault in the delivery of a double fault: the vCPU shuts down.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct TripleFault;

/// What trying to deliver came to.
enum Attempt {
    /// It is delivered.
    Done,
    /// It is not to be delivered.
    Swallowed,
    /// This exception is delivered instead.
    Instead(Exception),
}

/// Where delivery leads: found and checked before anything is changed.
struct Gate {
    offset: u64,
    cs: vmtree_api::x86::Segment,
    /// 0, or the number of the stack in the TSS.
    ist: u8,
    keeps_if: bool,
    cpl: u16,
}

/// Whether an exception counts as contributory for a double fault (table 6-4).
fn contributory(vector: u8) -> bool {
    matches!(vector, 0 | 10..=13)
}

/// What a fault during the delivery of an event becomes (table 6-5).
fn combine(first: &Event, second: Event) -> Result<Event, TripleFault> {
    if first.origin != Origin::Exception {
        return Ok(second);
    }
    let vector = second.what.vector;
    let serious = contributory(vector) || vector == PAGE_FAULT;
    match first.what.vector {
        DOUBLE_FAULT if serious => Err(TripleFault),
        PAGE_FAULT if serious => Ok(double_fault(second)),
        first if contributory(first) && contributory(vector) => Ok(double_fault(second)),
        _ => Ok(second),
    }
}

fn double_fault(second: Event) -> Event {
    let what = Exception { vector: DOUBLE_FAULT, error: Some(0), cr2: None };
    Event { what, ..second }
}

/// Whether the saved RIP is that of the instruction itself, which RF then protects from its breakpoint: all
/// exceptions but the traps and aborts among them (table 6-1).
fn is_fault(event: &Event) -> bool {
    event.origin == Origin::Exception && !matches!(event.what.vector, 1 | 3 | 4 | 8 | 18)
}

impl Core<'_> {
    /// Delivers an event, and what faults on the way. `outer` is the event whose delivery raised it.
    pub fn deliver(&mut self, event: Event, outer: Option<Event>) -> Stepped {
        let (mut event, mut outer) = (event, outer);
        loop {
            let second = match self.attempt(&event) {
                Ok(Attempt::Done) => return Stepped::Ran,
                Ok(Attempt::Swallowed) => {
                    self.swallow(&event);
                    // Without what was raised on its way, the delivery of the first one is tried again.
                    let Some(first) = outer.take() else { return Stepped::Ran };
                    event = Event { injected: true, ..first };
                    self.vcpu.trap.clear();
                    continue;
                }
                Ok(Attempt::Instead(what)) => {
                    self.retract(&event);
                    (event, outer) = (Event { injected: true, ..self.exception(what) }, None);
                    self.vcpu.trap.clear();
                    continue;
                }
                Err(Exception::STOPPED) => match self.vcpu.trap.raise.take() {
                    Some(exception) => Event { injected: true, ..self.exception(exception) },
                    None => {
                        self.vcpu.trap.mid = Mid::Delivery(event, outer);
                        return Stepped::Held;
                    }
                },
                Err(exception) => self.exception(exception),
            };
            self.vcpu.trap.clear();
            match combine(&event, second) {
                Ok(next) => (outer, event) = (Some(event), next),
                Err(TripleFault) => {
                    self.vcpu.activity = Activity::Dead;
                    return Stepped::Dead;
                }
            }
        }
    }

    /// An exception at the instruction at RIP.
    #[must_use]
    pub fn exception(&self, what: Exception) -> Event {
        Event { what, origin: Origin::Exception, rip: self.vcpu.cpu.regs.rip, injected: false }
    }

    fn attempt(&mut self, event: &Event) -> Result<Attempt, Exception> {
        match self.announce(event) {
            Ok(true) => {}
            Ok(false) => return Ok(Attempt::Swallowed),
            Err(stopped) => return self.vcpu.trap.raise.take().map(Attempt::Instead).ok_or(stopped),
        }
        if let Some(address) = event.what.cr2 {
            self.vcpu.cpu.regs.cr2 = address;
        }
        self.enter(event)?;
        self.vcpu.activity = Activity::Running;
        self.vcpu.shadow = Shadow::None;
        Ok(Attempt::Done)
    }

    fn enter(&mut self, event: &Event) -> Result<(), Exception> {
        let external = u32::from(!event.origin.is_software());
        let gate = self.gate(event, external)?;
        let old = u16::from(self.vcpu.cpu.cpl());
        let stack = self.handler_stack(&gate, old, external)?;
        let regs = &self.vcpu.cpu.regs;
        let resume = if is_fault(event) { RFLAGS_RF } else { 0 };
        let pushed = [
            event.what.error.map_or(0, u64::from),
            event.rip,
            u64::from(regs.cs.selector),
            regs.rflags | resume,
            regs.gpr[4],
            u64::from(regs.ss.selector),
        ];
        let pushed = if event.what.error.is_some() { &pushed[..] } else { &pushed[1..] };
        let frame: Vec<u8> = pushed.iter().flat_map(|word| word.to_le_bytes()).collect();
        let rsp = stack.wrapping_sub(frame.len() as u64);
        if !canonical(rsp) || !canonical(stack.wrapping_sub(1)) {
            return Err(about(vector::SS, 0, external));
        }
        let mode = if gate.cpl == 3 { Mode::User } else { Mode::Kernel };
        self.write_as(mode, rsp, &frame)?;
        let regs = &mut self.vcpu.cpu.regs;
        regs.gpr[4] = rsp;
        if gate.cpl != old {
            regs.ss = empty_stack(gate.cpl);
        }
        regs.cs = gate.cs;
        regs.rip = gate.offset;
        regs.rflags &= !(RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM);
        if !gate.keeps_if {
            regs.rflags &= !RFLAGS_IF;
        }
        Ok(())
    }

    /// Reads and checks the gate of an event and the code segment behind it (6.12, 6.14).
    fn gate(&mut self, event: &Event, external: u32) -> Result<Gate, Exception> {
        let regs = &self.vcpu.cpu.regs;
        let (base, limit, cpl) = (regs.idtr.base, regs.idtr.limit, u16::from(self.vcpu.cpu.cpl()));
        let index = u64::from(event.what.vector) * 16;
        let about_gate = |vector| {
            let error = Some((index as u32 / 2) | IDT | external);
            Exception { vector, error, cr2: None }
        };
        if index + 15 > u64::from(limit) {
            return Err(about_gate(vector::GP));
        }
        let low = self.read_u64(base.wrapping_add(index))?;
        let high = self.read_u64(base.wrapping_add(index + 8))?;
        let kind = low >> 40 & 0x1f;
        let dpl = (low >> 45 & 3) as u16;
        if !matches!(kind, 0xe | 0xf) || event.origin.is_software() && dpl < cpl {
            return Err(about_gate(vector::GP));
        }
        if low >> 47 & 1 == 0 {
            return Err(about_gate(vector::NP));
        }
        let selector = (low >> 16) as u16;
        if selector & 0xfffc == 0 {
            return Err(about(vector::GP, 0, external));
        }
        let mut code = self.descriptor(selector, 8, external)?;
        if !code.is_code() || code.dpl() > cpl || !code.is_long() {
            return Err(about(vector::GP, selector, external));
        }
        if !code.present() {
            return Err(about(vector::NP, selector, external));
        }
        let offset = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
        if !canonical(offset) {
            return Err(about(vector::GP, 0, external));
        }
        let cpl = if code.is_conforming() { cpl } else { code.dpl() };
        self.mark_descriptor(&mut code, 1)?;
        let cs = code.segment(selector & 0xfffc | cpl);
        Ok(Gate { offset, cs, ist: (low >> 32 & 7) as u8, keeps_if: kind == 0xf, cpl })
    }

    /// The top of the handler's stack: an IST entry, RSPn, or the stack at hand; always aligned to 16.
    fn handler_stack(&mut self, gate: &Gate, old: u16, external: u32) -> Result<u64, Exception> {
        let offset = match (gate.ist, gate.cpl != old) {
            (0, false) => return Ok(self.vcpu.cpu.regs.gpr[4] & !15),
            (0, true) => 4 + 8 * u64::from(gate.cpl),
            (ist, _) => 36 + 8 * u64::from(ist - 1),
        };
        let tr = self.vcpu.cpu.regs.tr;
        if tr.attr & 0x80 == 0 || offset + 7 > u64::from(tr.limit) {
            return Err(about(vector::TS, tr.selector, external));
        }
        Ok(self.read_u64(tr.base.wrapping_add(offset))? & !15)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(vector: u8, origin: Origin) -> Event {
        Event { what: Exception::plain(vector), origin, rip: 0, injected: false }
    }

    fn combined(first: u8, second: u8) -> Option<u8> {
        let [first, second] = [first, second].map(|vector| event(vector, Origin::Exception));
        combine(&first, second).ok().map(|event| event.what.vector)
    }

    #[test]
    fn faults_combine_as_table_6_5_says() {
        assert_eq!(combined(13, 13), Some(8));
        assert_eq!(combined(0, 10), Some(8));
        assert_eq!(combined(13, 14), Some(14), "a page fault is no double fault of a contributory one");
        assert_eq!(combined(14, 14), Some(8));
        assert_eq!(combined(14, 11), Some(8));
        assert_eq!(combined(6, 13), Some(13), "#UD is benign");
        assert_eq!(combined(8, 13), None);
        assert_eq!(combined(8, 14), None);
        let interrupt = event(13, Origin::External);
        assert_eq!(combine(&interrupt, event(13, Origin::Exception)).unwrap().what.vector, 13);
    }
}
