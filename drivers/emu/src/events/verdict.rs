//! What verdicts do to a vCPU that is held.

use vmtree_api::events::{Detail, EventKind, Inject, Verdict, Way};
use vmtree_api::{Error, ErrorKind, Result, ViewId};

use crate::cpu::Exception;
use crate::cpu::check;
use crate::cpu::grants::{Answer, Key, Mid, Stopped};
use crate::cpu::interrupt::{Event as Delivery, Origin};
use crate::cpu::msr::{self, Failure};
use crate::cpu::vcpu::Vcpu;
use crate::machine::State;
use crate::phys::World;
use crate::{injection, registers};

const OP: &str = "answer";

fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::Invalid, OP, why))
}

/// Lets a held vCPU go with this verdict.
///
/// # Errors
/// As [`vmtree_api::events::Held::answer`]; the vCPU is then held as before.
pub fn answer(state: &mut State, index: usize, serial: u64, verdict: &Verdict) -> Result<()> {
    let stopped = state.vcpus.get(index).and_then(|vcpu| vcpu.trap.held);
    let Some(stopped) = stopped.filter(|stopped| stopped.serial == serial) else {
        return Err(Error::new(ErrorKind::Stale, OP, "the event is no longer waiting for an answer"));
    };
    if let Verdict::Set(changes) = verdict {
        registers::set(state, index, changes)?;
    }
    let State { vcpus, world, .. } = state;
    let Some(vcpu) = vcpus.get_mut(index) else { return Ok(()) };
    match verdict {
        Verdict::Continue => pass(vcpu, &stopped),
        Verdict::Deny => give(vcpu, &stopped, denied(&stopped)?),
        Verdict::Value(value) => {
            replaced(vcpu, world, &stopped, *value)?;
            if !at_hand(vcpu) {
                return refuse("RIP was set meanwhile: what takes a value does not take place");
            }
            give(vcpu, &stopped, Answer::Data(*value));
        }
        Verdict::Set(_) => pass(vcpu, &stopped),
        Verdict::Step(view) => step(vcpu, world, &stopped, *view)?,
        Verdict::View(view) => {
            world.slat.known(OP, *view)?;
            vcpu.trap.back = None;
            onto(vcpu, &stopped, *view);
        }
        Verdict::Inject(what) => inject(vcpu, &stopped, *what)?,
    }
    vcpu.trap.held = None;
    vcpu.trap.refresh();
    Ok(())
}

/// Whether what was stopped is still to be done: a step is done, and where RIP was set, the instruction is dropped.
fn at_hand(vcpu: &Vcpu) -> bool {
    !matches!(vcpu.trap.mid, Mid::Nothing)
}

/// The answer to what was stopped; the next instruction must not take it for its own.
fn give(vcpu: &mut Vcpu, stopped: &Stopped, answer: Answer) {
    if at_hand(vcpu) {
        vcpu.trap.grant(stopped.key, answer);
    }
}

/// What was stopped takes place.
fn pass(vcpu: &mut Vcpu, stopped: &Stopped) {
    give(vcpu, stopped, Answer::Pass);
}

/// Another view: an access is tried anew there, all else takes place.
fn onto(vcpu: &mut Vcpu, stopped: &Stopped, view: ViewId) {
    vcpu.switch(view.0);
    if stopped.event.kind == EventKind::Slat {
        vcpu.trap.grants.retain(|grant| !matches!(grant.key, Key::Slat(..)));
    } else {
        pass(vcpu, stopped);
    }
}

fn step(vcpu: &mut Vcpu, world: &World, stopped: &Stopped, view: Option<ViewId>) -> Result<()> {
    let now = ViewId(vcpu.trap.view);
    let Some(view) = view.filter(|view| *view != now) else {
        pass(vcpu, stopped);
        return Ok(());
    };
    world.slat.known(OP, view)?;
    vcpu.trap.back = vcpu.trap.back.or(Some(now.0));
    onto(vcpu, stopped, view);
    Ok(())
}

fn inject(vcpu: &mut Vcpu, stopped: &Stopped, what: Inject) -> Result<()> {
    what.check(injection::OP)?;
    let exception = match what {
        Inject::PageFault { address, error } => Exception::page(address.0, error),
        Inject::Exception { vector, error } => Exception { vector, error, cr2: None },
        Inject::Interrupt { .. } | Inject::Nmi => {
            injection::leave(&mut vcpu.trap, what)?;
            pass(vcpu, stopped);
            return Ok(());
        }
    };
    if let Mid::Delivery(..) = vcpu.trap.mid {
        // It may become a double fault.
        give(vcpu, stopped, Answer::Raise(exception));
    } else {
        let rip = vcpu.cpu.regs.rip;
        let event = Delivery { what: exception, origin: Origin::Exception, rip, injected: true };
        vcpu.trap.clear();
        vcpu.trap.mid = Mid::Delivery(event, None);
    }
    Ok(())
}

/// What denying an event comes to.
fn denied(stopped: &Stopped) -> Result<Answer> {
    let kind = stopped.event.kind;
    match (stopped.key, stopped.fault) {
        (Key::Slat(..), Some(fault)) => Ok(Answer::Raise(fault)),
        (Key::Slat(..), None) => Ok(Answer::Drop),
        (Key::Kind(EventKind::SingleStep | EventKind::Cpuid, ..), _) => {
            refuse(format!("{kind} can't be denied: it is done"))
        }
        (Key::Kind(EventKind::Descriptor, ..), _) => Ok(Answer::Drop),
        (Key::Kind(_, Way::From, _), _) => {
            refuse(format!("a read of {kind} can't be denied: give the value instead"))
        }
        _ => Ok(Answer::Drop),
    }
}

/// Whether an event can take place with this value.
fn replaced(vcpu: &Vcpu, world: &World, stopped: &Stopped, value: u128) -> Result<()> {
    let kind = stopped.event.kind;
    match stopped.key {
        Key::Kind(EventKind::Cpuid, ..) => Ok(()),
        Key::Kind(EventKind::Io, ..) => match stopped.event.detail {
            Detail::Io { bytes, .. } => fits(value, usize::from(bytes)),
            _ => Ok(()),
        },
        Key::Slat(_, Way::Execute, _) => {
            refuse("a fetch takes no value; deny it, inject, set rip or change the view")
        }
        Key::Slat(..) if stopped.bytes > 16 => {
            refuse(format!("the access has {} bytes; a value has at most 16", stopped.bytes))
        }
        Key::Slat(..) => fits(value, stopped.bytes),
        Key::Kind(
            EventKind::Interrupt | EventKind::Breakpoint | EventKind::SingleStep | EventKind::Descriptor,
            ..,
        ) => refuse(format!("{kind} takes no value")),
        Key::Kind(kind, way, index) => {
            fits(value, 8)?;
            let value = value as u64;
            if way == Way::To { to(vcpu, world, (kind, index), value) } else { Ok(()) }
        }
    }
}

fn fits(value: u128, bytes: usize) -> Result<()> {
    if bytes < 16 && value >> (8 * bytes) != 0 {
        let why = format!("{value:#x} does not fit in {bytes} bytes");
        return Err(Error::new(ErrorKind::OutOfRange, OP, why));
    }
    Ok(())
}

/// Whether a register can hold a value.
fn to(vcpu: &Vcpu, world: &World, (kind, index): (EventKind, u32), value: u64) -> Result<()> {
    let checked = match (kind, index) {
        (EventKind::Cr0, _) => check::cr0(value),
        (EventKind::Cr3, _) => check::cr3(value),
        (EventKind::Cr4, _) => check::cr4(value),
        (EventKind::Cr8, _) => check::cr8(value),
        (EventKind::Xcr0, _) => check::xcr0(value),
        (EventKind::Dr, 6) => check::dr6(value),
        (EventKind::Dr, 7) => check::dr7(value),
        (EventKind::Msr, _) => msr::check(vcpu, world, index, value).map_err(|failure| match failure {
            Failure::Unknown => "there is no such MSR",
            Failure::Value(why) => why,
        }),
        _ => Ok(value),
    };
    match checked {
        Ok(_) => Ok(()),
        Err(why) => refuse(format!("{kind} can't hold {value:#x}: {why}")),
    }
}
