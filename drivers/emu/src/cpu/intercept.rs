//! Where instructions ask whether they are watched. With nothing armed, asking is one test of a bit.

use vmtree_api::Gva;
use vmtree_api::events::{Detail, EventKind, Move, Way};
use vmtree_api::x86::{PagingMode, walk};

use super::Exception;
use super::bits::RFLAGS_RF;
use super::grants::{Answer, Asked, Asker, Key, Mid};
use super::interrupt::{Event, Origin};
use super::vcpu::Core;

impl Core<'_> {
    /// What becomes of an event of this instruction.
    ///
    /// # Errors
    /// [`Exception::STOPPED`].
    pub fn ask(&mut self, kind: EventKind, index: u32, detail: Detail) -> Result<Answer, Exception> {
        if !self.world.armed.has(kind) && self.vcpu.trap.grants.is_empty() {
            return Ok(Answer::Pass);
        }
        self.asked(kind, index, detail)
    }

    #[cold]
    fn asked(&mut self, kind: EventKind, index: u32, detail: Detail) -> Result<Answer, Exception> {
        let way = way(&detail);
        let hold = self.world.armed.matching(kind, way, self.vcpu.id, index);
        let asked = Asked { key: Key::Kind(kind, way, index), detail, bytes: 0, fault: None };
        let by = Asker { vcpu: self.vcpu.id, cpu: &self.vcpu.cpu, world: self.world };
        self.vcpu.trap.ask(&by, asked, hold)
    }

    /// The value that a write to a register takes after all; `None`: the write is skipped.
    ///
    /// # Errors
    /// [`Exception::STOPPED`].
    pub fn ask_to(&mut self, what: Register, old: u64, new: u64) -> Result<Option<u64>, Exception> {
        Ok(match self.ask(what.kind, what.index, what.detail(Move::To { old, new }))? {
            Answer::Data(value) => Some(value as u64),
            Answer::Drop => None,
            Answer::Pass | Answer::Raise(_) => Some(new),
        })
    }

    /// The value that a read of a register delivers after all.
    ///
    /// # Errors
    /// [`Exception::STOPPED`].
    pub fn ask_from(&mut self, what: Register, value: u64) -> Result<u64, Exception> {
        Ok(match self.ask(what.kind, what.index, what.detail(Move::From { value }))? {
            Answer::Data(value) => value as u64,
            _ => value,
        })
    }

    /// Asks about the delivery of an event; `false`: it is swallowed.
    ///
    /// # Errors
    /// [`Exception::STOPPED`].
    pub fn announce(&mut self, event: &Event) -> Result<bool, Exception> {
        if event.injected {
            return Ok(true);
        }
        let vector = event.what.vector;
        let kind = event.origin.interrupt_type();
        let detail =
            Detail::Interrupt { vector: Some(vector), kind, error: event.what.error, cr2: event.what.cr2 };
        Ok(self.ask(EventKind::Interrupt, u32::from(vector), detail)? != Answer::Drop)
    }

    /// Asks about INT3; `false`: it does nothing.
    ///
    /// # Errors
    /// [`Exception::STOPPED`].
    pub fn ask_breakpoint(&mut self, len: usize) -> Result<bool, Exception> {
        if !self.world.armed.has(EventKind::Breakpoint) && self.vcpu.trap.grants.is_empty() {
            return Ok(true);
        }
        let regs = &self.vcpu.cpu.regs;
        let world = &*self.world;
        let (view, vcpu) = (self.vcpu.trap.view, self.vcpu.id);
        let read = |gpa: vmtree_api::Gpa| {
            Ok::<_, std::convert::Infallible>(world.entry(vcpu, world.slat.place(view, gpa.0)))
        };
        let Ok(found) = walk(&PagingMode::from(regs), Gva(regs.rip), read);
        let detail = Detail::Breakpoint { gpa: found.ok().map(|found| found.gpa), len: len as u8 };
        Ok(self.ask(EventKind::Breakpoint, 0, detail)? != Answer::Drop)
    }

    /// Reports the step that was just completed.
    pub fn report_step(&mut self) {
        let Some(hold) = self.world.armed.matching(EventKind::SingleStep, Way::Once, self.vcpu.id, 0) else {
            return;
        };
        let key = Key::Kind(EventKind::SingleStep, Way::Once, 0);
        let asked = Asked { key, detail: Detail::SingleStep, bytes: 0, fault: None };
        let by = Asker { vcpu: self.vcpu.id, cpu: &self.vcpu.cpu, world: self.world };
        self.vcpu.trap.tell(&by, asked, hold);
        if self.vcpu.trap.full {
            self.vcpu.trap.mid = Mid::Stepped;
        }
    }

    /// Takes an event back that something else comes instead of.
    pub fn retract(&mut self, event: &Event) {
        match event.origin {
            Origin::External => {
                if let Some(apic) = self.world.apics.get_mut(self.vcpu.id) {
                    apic.retire(event.what.vector);
                }
            }
            Origin::Nmi => self.vcpu.nmi_blocked = false,
            _ => {}
        }
    }

    /// Takes an event back that does not take place: what the instruction made is made, and a fault is tried again.
    pub fn swallow(&mut self, event: &Event) {
        self.retract(event);
        if matches!(event.origin, Origin::Software | Origin::SoftwareException | Origin::Privileged) {
            self.vcpu.cpu.regs.rip = event.rip;
            self.vcpu.cpu.regs.rflags &= !RFLAGS_RF;
        }
    }
}

/// A register that is watched.
#[derive(Clone, Copy, Debug)]
pub struct Register {
    kind: EventKind,
    index: u32,
}

impl Register {
    /// A control register, by its kind.
    #[must_use]
    pub const fn control(kind: EventKind) -> Self {
        Self { kind, index: 0 }
    }

    /// A debug register.
    #[must_use]
    pub const fn debug(number: usize) -> Self {
        Self { kind: EventKind::Dr, index: number as u32 }
    }

    /// An MSR.
    #[must_use]
    pub const fn msr(index: u32) -> Self {
        Self { kind: EventKind::Msr, index }
    }

    fn detail(self, access: Move) -> Detail {
        match self.kind {
            EventKind::Dr => Detail::Debug { reg: self.index as u8, access },
            EventKind::Msr => Detail::Msr { index: self.index, access },
            _ => Detail::Control(access),
        }
    }
}

/// The way of an event with these details.
fn way(detail: &Detail) -> Way {
    match detail {
        Detail::Control(access) | Detail::Debug { access, .. } | Detail::Msr { access, .. } => match access {
            Move::To { .. } => Way::To,
            Move::From { .. } => Way::From,
        },
        Detail::Io { value: Some(_), .. } => Way::To,
        Detail::Io { value: None, .. } => Way::From,
        Detail::Descriptor { way, .. } => *way,
        _ => Way::Once,
    }
}
