//! One step of a vCPU: an instruction, one round of a repeated one, or the delivery of an interrupt.

use iced_x86::Mnemonic;
use vmtree_api::events::Inject;

use super::Exception;
use super::bits::{DR6_BS, RFLAGS_IF, RFLAGS_RF, RFLAGS_TF};
use super::exec::{self, Done};
use super::grants::Mid;
use super::interrupt::{Event, Origin};
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
    /// The vCPU is held at an event, or waits for room to report one. No time passes.
    Held,
    /// A triple fault: it just stopped for good, or did before.
    Dead,
}

impl Core<'_> {
    /// Does one step. Time is not advanced here.
    #[inline]
    pub fn step(&mut self) -> Stepped {
        if self.vcpu.trap.attention || self.world.armed.steps {
            let stepped = self.go_on();
            return self.settle(stepped);
        }
        let stepped = self.next();
        if self.vcpu.trap.attention { self.settle(stepped) } else { stepped }
    }

    /// What comes next with nothing at hand.
    #[inline(always)]
    fn next(&mut self) -> Stepped {
        if self.vcpu.activity == Activity::Dead {
            return Stepped::Dead;
        }
        if let Some(event) = self.interrupt() {
            return self.deliver(event, None);
        }
        if self.vcpu.activity == Activity::Halted {
            return Stepped::Idle;
        }
        self.instruction()
    }

    #[cold]
    /// Goes on with what is at hand: what was stopped and answered, then what was injected.
    fn go_on(&mut self) -> Stepped {
        let trap = &mut self.vcpu.trap;
        if trap.held.is_some() {
            return Stepped::Held;
        }
        trap.full = false;
        if trap.careful {
            self.vcpu.tlb.flush();
        }
        match std::mem::take(&mut trap.mid) {
            Mid::Instruction => return self.instruction(),
            Mid::Delivery(event, outer) => return self.deliver(event, outer),
            Mid::Stepped => {
                self.report_step();
                if self.vcpu.trap.stands() {
                    return Stepped::Held;
                }
            }
            Mid::Nothing => {}
        }
        match self.injected() {
            Some(event) if self.vcpu.activity != Activity::Dead => self.deliver(event, None),
            _ => self.next(),
        }
    }

    #[cold]
    /// Ends a step in which there was something to look at.
    fn settle(&mut self, stepped: Stepped) -> Stepped {
        if matches!(stepped, Stepped::Ran | Stepped::Yielded) {
            self.vcpu.trap.clear();
            if let Some(view) = self.vcpu.trap.back.take() {
                self.vcpu.switch(view);
            }
            if self.world.armed.steps {
                self.report_step();
            }
        }
        self.vcpu.trap.refresh();
        stepped
    }

    /// Takes what was injected, if the vCPU can take it now (Intel SDM volume 3C, 27.6: exceptions at once).
    fn injected(&mut self) -> Option<Event> {
        let vcpu = &mut *self.vcpu;
        let rip = vcpu.cpu.regs.rip;
        let event = |what, origin| Some(Event { what, origin, rip, injected: true });
        let waiting = self.world.apics.get(vcpu.id).is_some_and(|apic| apic.nmi) && !vcpu.nmi_blocked;
        let free = vcpu.shadow == Shadow::None;
        let event = match vcpu.trap.injected? {
            Inject::PageFault { address, error } => {
                event(Exception::page(address.0, error), Origin::Exception)
            }
            Inject::Exception { vector, error } => {
                event(Exception { vector, error, cr2: None }, Origin::Exception)
            }
            Inject::Nmi if free && !vcpu.nmi_blocked => {
                vcpu.nmi_blocked = true;
                event(Exception::plain(NMI), Origin::Nmi)
            }
            // An NMI comes before it (volume 3A, table 6-2).
            Inject::Interrupt { vector } if free && !waiting && vcpu.cpu.regs.rflags & RFLAGS_IF != 0 => {
                event(Exception::plain(vector), Origin::External)
            }
            Inject::Nmi | Inject::Interrupt { .. } => None,
        };
        if event.is_some() {
            vcpu.trap.injected = None;
        }
        event
    }

    #[inline]
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
            return Some(Event { what: Exception::plain(NMI), origin: Origin::Nmi, rip, injected: false });
        }
        if vcpu.cpu.regs.rflags & RFLAGS_IF == 0 {
            return None;
        }
        let vector = apic.take()?;
        Some(Event { what: Exception::plain(vector), origin: Origin::External, rip, injected: false })
    }

    #[cold]
    /// Delivers an exception of the instruction, or keeps the instruction for later if it was stopped.
    fn raise(&mut self, what: Exception) -> Stepped {
        let trap = &mut self.vcpu.trap;
        let event = match (what, trap.raise.take()) {
            (Exception::STOPPED, None) => {
                trap.mid = Mid::Instruction;
                return Stepped::Held;
            }
            (Exception::STOPPED, Some(what)) => Event { injected: true, ..self.exception(what) },
            _ => self.exception(what),
        };
        self.vcpu.trap.clear();
        self.deliver(event, None)
    }

    #[inline(always)]
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
                Ok(Then::Deliver(event)) => {
                    self.vcpu.trap.clear();
                    return self.deliver(event, None);
                }
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
