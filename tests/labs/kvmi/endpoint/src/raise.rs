//! Events of the built-in machine as messages.

use vmtree_api::events::{DescriptorTable, Detail, Event, EventKind, Held, Move, Way};
use vmtree_api::{Access, Driver, RegisterSet, VcpuId, x86};

use crate::layout;
use crate::state::{At, State, Stop};
use crate::wire::{Message, event, id};

/// The number of KVMI for "no such address".
const NO_ADDRESS: u64 = u64::MAX;
/// CPUID has two bytes.
const CPUID_BYTES: u8 = 2;

fn bits(access: Access) -> u8 {
    let bit = |right, bit| if access.contains(right) { bit } else { 0 };
    bit(Access::READ, 1) | bit(Access::WRITE, 2) | bit(Access::EXECUTE, 4)
}

fn words(first: u32, old: u64, new: u64) -> Vec<u8> {
    let head = u64::from(first).to_le_bytes();
    [head, old.to_le_bytes(), new.to_le_bytes()].concat()
}

/// The kind and the data of an event; `None` for one that KVMI does not have.
fn told(event: &Event) -> Option<(u8, Vec<u8>)> {
    Some(match (&event.detail, event.kind) {
        (Detail::Control(Move::To { old, new }), kind) => {
            let cr = match kind {
                EventKind::Cr0 => 0,
                EventKind::Cr3 => 3,
                EventKind::Cr4 => 4,
                _ => return None,
            };
            (event::CR, words(cr, *old, *new))
        }
        (Detail::Msr { index, access: Move::To { old, new } }, _) => (event::MSR, words(*index, *old, *new)),
        (Detail::Breakpoint { gpa, len }, _) => {
            let gpa = gpa.map_or(NO_ADDRESS, |gpa| gpa.0).to_le_bytes();
            (event::BREAKPOINT, [gpa, [*len, 0, 0, 0, 0, 0, 0, 0]].concat())
        }
        (Detail::Slat { access, gpa, gva, .. }, _) => {
            let gva = gva.map_or(NO_ADDRESS, |gva| gva.0).to_le_bytes();
            let view = (event.view.0 as u16).to_le_bytes();
            let rest = [bits(*access), 0, view[0], view[1], 0, 0, 0, 0];
            (event::PF, [gva, gpa.0.to_le_bytes(), rest].concat())
        }
        (Detail::Descriptor { table, way }, _) => {
            let table = match table {
                DescriptorTable::Idtr => 1,
                DescriptorTable::Gdtr => 2,
                DescriptorTable::Ldtr => 3,
                DescriptorTable::Tr => 4,
            };
            (event::DESCRIPTOR, vec![table, u8::from(*way == Way::To), 0, 0, 0, 0, 0, 0])
        }
        (Detail::Cpuid { leaf, subleaf }, _) => {
            let [leaf, subleaf] = [leaf.to_le_bytes(), subleaf.to_le_bytes()];
            (event::CPUID, [leaf, subleaf, [CPUID_BYTES, 0, 0, 0], [0; 4]].concat())
        }
        (Detail::SingleStep, _) => (event::SINGLESTEP, vec![0; 8]),
        _ => return None,
    })
}

/// The registers of a vCPU; zeros where the machine has ended.
#[must_use]
pub fn registers(driver: &dyn Driver, vcpu: usize) -> x86::Registers {
    let read = driver.registers().ok().and_then(|registers| registers.read(VcpuId(vcpu as u32)).ok());
    match read {
        Some(RegisterSet::X86_64(registers)) => *registers,
        _ => x86::Registers::default(),
    }
}

/// The view that a vCPU runs on.
#[must_use]
pub fn view(driver: &dyn Driver, vcpu: usize) -> u16 {
    let view = driver.views().ok().and_then(|views| views.current(VcpuId(vcpu as u32)).ok());
    view.map_or(0, |view| view.0 as u16)
}

/// Puts a vCPU at a stop and makes the message that tells of it.
fn stop(
    state: &mut State,
    driver: &dyn Driver,
    vcpu: usize,
    kind: u8,
    data: &[u8],
    stop: Stop,
) -> Option<Message> {
    state.seq = state.seq.wrapping_add(1);
    let seq = state.seq;
    state.vcpus.get_mut(vcpu)?.at = Some(At { seq, kind, stop });
    let mut bytes = layout::event(kind, vcpu as u16, view(driver, vcpu), &registers(driver, vcpu));
    bytes.extend(data);
    Some(Message { id: id::EVENT, seq, data: bytes })
}

/// Takes an event of the machine: the message that tells of it, if it is still wanted and its vCPU does not wait already.
#[must_use]
pub fn raised(state: &mut State, driver: &dyn Driver, held: Held) -> Option<Message> {
    let number = held.event().vcpu.0 as usize;
    let vcpu = state.vcpus.get_mut(number)?;
    if held.event().kind == EventKind::Interrupt {
        if vcpu.armed.step {
            vcpu.put_off.take(driver, held);
        }
        return None;
    }
    let (kind, data) = told(held.event())?;
    let on = if kind == event::SINGLESTEP { vcpu.armed.step } else { vcpu.armed.has(kind) };
    if !on || !held.waits() {
        return None;
    }
    if vcpu.at.is_some() {
        vcpu.waiting.push_back(held);
        return None;
    }
    stop(state, driver, number, kind, &data, Stop::Event(held))
}

/// What a vCPU does once it waits for nothing more: a pause or an event that came meanwhile, or it runs.
#[must_use]
pub fn next(state: &mut State, driver: &dyn Driver, number: usize) -> Option<Message> {
    let vcpu = state.vcpus.get_mut(number)?;
    if vcpu.at.is_some() {
        return None;
    }
    // A pause is told of last (KVM-VMI's kernel: "low priority").
    while let Some(held) = state.vcpus.get_mut(number)?.waiting.pop_front() {
        if let Some(message) = raised(state, driver, held) {
            return Some(message);
        }
    }
    let vcpu = state.vcpus.get_mut(number)?;
    if vcpu.pauses == 0 {
        return None;
    }
    vcpu.pauses -= 1;
    stop(state, driver, number, event::PAUSE_VCPU, &[], Stop::Pause)
}
