//! One step of a vCPU: an instruction, one round of a repeated one, or the delivery of an interrupt.

use iced_x86::Mnemonic;

use super::Exception;
use super::bits::{DR6_BS, RFLAGS_IF, RFLAGS_RF, RFLAGS_TF};
use super::exec::{self, Done};
use super::interrupt::{Event, Origin, TripleFault};
use super::system::Then;
use super::vcpu::{Activity, Core, Shadow};

const NMI: u8 = 2;

/// What became of a step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stepped {
    /// Something was executed or delivered.
    Ran,
    /// So it was, and the vCPU gives its turn away (PAUSE).
    Yielded,
    /// The vCPU waits for an interrupt.
    Idle,
    /// A triple fault: it just stopped for good, or did before.
    Dead,
}

impl Core<'_> {
    /// Does one step. Time is not advanced here.
    pub fn step(&mut self) -> Stepped {
        if self.vcpu.activity == Activity::Dead {
            return Stepped::Dead;
        }
        if let Some(event) = self.interrupt() {
            return self.settle(event);
        }
        if self.vcpu.activity == Activity::Halted {
            return Stepped::Idle;
        }
        self.instruction()
    }

    /// Takes the interrupt that comes now, if one does: NMI first (Intel SDM volume 3A, table 6-2).
    fn interrupt(&mut self) -> Option<Event> {
        let vcpu = &mut *self.vcpu;
        let apic = self.world.apics.get_mut(vcpu.id)?;
        if !apic.nmi && apic.ready().is_none() || vcpu.shadow != Shadow::None {
            return None;
        }
        let rip = vcpu.cpu.regs.rip;
        if apic.nmi && !vcpu.nmi_blocked {
            apic.nmi = false;
            vcpu.nmi_blocked = true;
            return Some(Event { what: Exception::plain(NMI), origin: Origin::External, rip });
        }
        if vcpu.cpu.regs.rflags & RFLAGS_IF == 0 {
            return None;
        }
        let vector = apic.take()?;
        Some(Event { what: Exception::plain(vector), origin: Origin::External, rip })
    }

    fn settle(&mut self, event: Event) -> Stepped {
        match self.deliver(event) {
            Ok(()) => Stepped::Ran,
            Err(TripleFault) => Stepped::Dead,
        }
    }

    fn raise(&mut self, what: Exception) -> Stepped {
        let rip = self.vcpu.cpu.regs.rip;
        self.settle(Event { what, origin: Origin::Exception, rip })
    }

    fn instruction(&mut self) -> Stepped {
        let trap = self.vcpu.cpu.regs.rflags & RFLAGS_TF != 0;
        self.vcpu.shadow = Shadow::None;
        let (cpu, mut linear, decoded) = self.split();
        let ins = match decoded.fetch(cpu, &mut linear) {
            Ok(ins) => ins,
            Err(exception) => return self.raise(exception),
        };
        match exec::execute(cpu, &mut linear, &ins) {
            Ok(Done::Next) => cpu.regs.rflags &= !RFLAGS_RF,
            // RF stays between the rounds of a repeated instruction.
            Ok(Done::Again) => {}
            Ok(Done::NotHere) => match self.system(&ins) {
                Ok(Then::Next) => {
                    let regs = &mut self.vcpu.cpu.regs;
                    regs.rip = ins.next_ip();
                    regs.rflags &= !RFLAGS_RF;
                }
                Ok(Then::Stay) => {}
                Ok(Then::Deliver(event)) => return self.settle(event),
                Err(exception) => return self.raise(exception),
            },
            Err(exception) => return self.raise(exception),
        }
        // What SYSCALL masks TF with counts at once.
        let trap =
            trap && (ins.mnemonic() != Mnemonic::Syscall || self.vcpu.cpu.regs.rflags & RFLAGS_TF != 0);
        if trap && self.vcpu.shadow != Shadow::Stack {
            self.vcpu.cpu.regs.dr[6] |= DR6_BS;
            return self.raise(Exception::plain(1));
        }
        if ins.mnemonic() == Mnemonic::Pause { Stepped::Yielded } else { Stepped::Ran }
    }
}
