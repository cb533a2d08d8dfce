//! What an introspector answers to an event.

use vmtree_api::events::{Detail, Held, Move, Verdict};
use vmtree_api::x86::Reg;
use vmtree_api::{Driver, RegValue, VcpuId, ViewId};

use crate::raise::{registers, view};
use crate::state::{At, State, Stop};
use crate::wire::{BadSize, Fields, action, event};

/// An answer.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    vcpu: usize,
    action: u8,
    kind: u8,
    /// The value for a control register or an MSR.
    value: Option<u64>,
}

impl Reply {
    /// The vCPU that it is of.
    #[must_use]
    pub fn vcpu(&self) -> usize {
        self.vcpu
    }

    /// Reads one.
    ///
    /// # Errors
    /// It has not the size of an answer to its kind of event.
    pub fn parse(data: &[u8]) -> Result<Self, BadSize> {
        let mut fields = Fields(data);
        let vcpu = fields.number(2)? as usize;
        fields.take(6)?;
        let (action, kind) = (fields.number(1)? as u8, fields.number(1)? as u8);
        fields.take(6)?;
        let value = if matches!(kind, event::CR | event::MSR) { Some(fields.number(8)?) } else { None };
        if kind == event::PF {
            // The context that an emulated read would get; shorter ones of older versions are taken too.
            fields.take(fields.0.len().min(272))?;
        }
        fields.end()?;
        Ok(Self { vcpu, action, kind, value })
    }
}

/// What the machine is told, where the instruction goes on.
fn go_on(held: &Held, reply: &Reply) -> Verdict {
    let new = match held.event().detail {
        Detail::Control(Move::To { new, .. }) | Detail::Msr { access: Move::To { new, .. }, .. } => Some(new),
        _ => None,
    };
    match (reply.value, new) {
        (Some(value), Some(new)) if value != new => Verdict::Value(u128::from(value)),
        _ => Verdict::Continue,
    }
}

/// Sets what was set during the event.
fn set_registers(state: &mut State, driver: &dyn Driver, number: usize) {
    let Some(vcpu) = state.vcpus.get_mut(number) else { return };
    let wanted = std::mem::take(&mut vcpu.registers);
    let now = vmtree_api::RegisterSet::X86_64(Box::new(registers(driver, number)));
    let changes: Vec<_> = wanted.into_iter().filter(|(id, value)| now.get(*id) != Some(*value)).collect();
    if let Ok(access) = driver.registers()
        && let Err(error) = access.write(VcpuId(number as u32), &changes)
    {
        eprintln!("vCPU {number} takes no such registers: {error}");
    }
}

/// The instruction is tried anew, where it is no access: the machine forgets what it was stopped at when RIP moves.
fn forget(driver: &dyn Driver, number: usize) {
    let Ok(access) = driver.registers() else { return };
    let rip = registers(driver, number).rip;
    for rip in [rip.wrapping_add(1), rip] {
        // Beside the address that it has, one that it can't have is no harm: then nothing is forgotten.
        let _ = access.write(VcpuId(number as u32), &[(Reg::Rip.id(), RegValue::Word(rip))]);
    }
}

fn verdict(state: &mut State, driver: &dyn Driver, held: &Held, reply: &Reply) -> Verdict {
    let before = registers(driver, reply.vcpu).rip;
    set_registers(state, driver, reply.vcpu);
    let injected = state.vcpus.get_mut(reply.vcpu).and_then(|vcpu| vcpu.injected.take());
    let again = reply.action == action::RETRY;
    match injected {
        Some(what) if again || reply.kind == event::SINGLESTEP => Verdict::Inject(what),
        Some(what) => {
            // The instruction is carried out; the exception comes behind it.
            if let Ok(injection) = driver.injection()
                && let Err(error) = injection.inject(VcpuId(reply.vcpu as u32), what)
            {
                eprintln!("vCPU {} takes no such exception: {error}", reply.vcpu);
            }
            go_on(held, reply)
        }
        None if again && reply.kind == event::PF => {
            Verdict::View(ViewId(u32::from(view(driver, reply.vcpu))))
        }
        None if again => {
            if registers(driver, reply.vcpu).rip == before {
                forget(driver, reply.vcpu);
            }
            Verdict::Continue
        }
        None => go_on(held, reply),
    }
}

/// An answer that makes no sense: the connection is closed, as KVM does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Wrong(pub &'static str);

/// Lets a vCPU go. Whether it is to be stepped, while the others stand, is told.
///
/// # Errors
/// No vCPU waits for this answer.
pub fn answered(state: &mut State, driver: &dyn Driver, seq: u32, reply: &Reply) -> Result<(), Wrong> {
    let vcpu = state.vcpus.get_mut(reply.vcpu).ok_or(Wrong("an answer of a vCPU that is not there"))?;
    let fits = |at: &mut At| at.seq == seq && at.kind == reply.kind;
    let Some(at) = vcpu.at.take_if(fits) else {
        return Err(Wrong("an answer to an event that nobody waits for"));
    };
    if reply.action > action::RETRY {
        return Err(Wrong("the lab's guest is not crashed by an answer"));
    }
    let pauses = vcpu.pauses > 0;
    match at.stop {
        Stop::Pause => set_registers(state, driver, reply.vcpu),
        Stop::Event(held) => {
            // Before it is let go: it must not run meanwhile.
            if pauses && state.pause.is_none() {
                state.pause = driver.execution().ok().and_then(|execution| execution.pause().ok());
            }
            let verdict = verdict(state, driver, &held, reply);
            if let Err(refused) = held.answer(&verdict) {
                eprintln!("vCPU {} takes no such answer: {}", reply.vcpu, refused.error);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_refused(bytes: Vec<u8>) {
            let _ = Reply::parse(&bytes);
        }
    }

    #[test]
    fn an_answer_to_a_write_has_its_value() {
        let mut bytes = vec![1, 0, 0, 0, 0, 0, 0, 0, 0, event::CR, 0, 0, 0, 0, 0, 0];
        assert!(Reply::parse(&bytes).is_err());
        bytes.extend(7u64.to_le_bytes());
        let reply = Reply::parse(&bytes).unwrap();
        assert_eq!((reply.vcpu, reply.value), (1, Some(7)));
        bytes.push(0);
        assert!(Reply::parse(&bytes).is_err());
    }
}
