//! Events of the agent as events of the driver. What makes no sense is a breach of the protocol.

use vmtree_agent::{self as wire, Kind, flag};
use vmtree_api::events::{DescriptorTable, Detail, Event, EventKind, InterruptType, Move, Way};
use vmtree_api::{Access, Gpa, Gva, VcpuId, ViewId};

/// The event that the agent tells of; `None` for one that can't be.
#[must_use]
pub fn event(told: &wire::Event) -> Option<Event> {
    let (kind, detail) = detail(told)?;
    let event = Event {
        vcpu: VcpuId(told.vcpu),
        view: ViewId::default(),
        kind,
        rip: told.rip,
        cr3: told.cr3,
        detail,
    };
    // The way says the same as the detail.
    (super::wanted::way(event.way()) == told.way).then_some(event)
}

fn detail(told: &wire::Event) -> Option<(EventKind, Detail)> {
    let small = |number: u32| u8::try_from(number).ok();
    Some(match told.kind {
        Kind::Cr0 => (EventKind::Cr0, Detail::Control(access(told)?)),
        Kind::Cr3 => (EventKind::Cr3, Detail::Control(access(told)?)),
        Kind::Cr4 => (EventKind::Cr4, Detail::Control(access(told)?)),
        Kind::Cr8 => (EventKind::Cr8, Detail::Control(access(told)?)),
        Kind::Xcr0 => (EventKind::Xcr0, Detail::Control(access(told)?)),
        Kind::Dr => {
            let reg = small(told.index).filter(|reg| *reg < 8)?;
            (EventKind::Dr, Detail::Debug { reg, access: access(told)? })
        }
        Kind::Msr => (EventKind::Msr, Detail::Msr { index: told.index, access: access(told)? }),
        Kind::Interrupt => (EventKind::Interrupt, interrupt(told)?),
        Kind::Breakpoint => {
            let gpa = has(told, flag::GPA).then_some(Gpa(told.a));
            (EventKind::Breakpoint, Detail::Breakpoint { gpa, len: small(told.index)? })
        }
        Kind::SingleStep => (EventKind::SingleStep, Detail::SingleStep),
        Kind::Slat => (EventKind::Slat, slat(told)?),
        Kind::Cpuid => (EventKind::Cpuid, Detail::Cpuid { leaf: told.index, subleaf: told.extra }),
        Kind::Io => (EventKind::Io, io(told)?),
        Kind::Descriptor => {
            let way = match told.way {
                wire::Way::To => Way::To,
                wire::Way::From => Way::From,
                _ => return None,
            };
            (EventKind::Descriptor, Detail::Descriptor { table: table(told.index)?, way })
        }
        Kind::GuestRequest => (EventKind::GuestRequest, Detail::GuestRequest),
    })
}

fn has(told: &wire::Event, bit: u16) -> bool {
    told.flags & bit != 0
}

fn access(told: &wire::Event) -> Option<Move> {
    match told.way {
        wire::Way::To => Some(Move::To { old: told.a, new: told.b }),
        wire::Way::From => Some(Move::From { value: told.a }),
        _ => None,
    }
}

fn interrupt(told: &wire::Event) -> Option<Detail> {
    // In the order of the manual's names (Intel SDM volume 3C, 25.8.3), as docs/agent.md numbers them.
    let kind = match told.index >> 8 {
        0 => InterruptType::External,
        1 => InterruptType::Nmi,
        2 => InterruptType::HardwareException,
        3 => InterruptType::SoftwareInterrupt,
        4 => InterruptType::PrivilegedSoftwareException,
        5 => InterruptType::SoftwareException,
        _ => return None,
    };
    Some(Detail::Interrupt {
        vector: told.index as u8,
        kind,
        error: has(told, flag::ERROR).then_some(told.extra),
        cr2: has(told, flag::CR2).then_some(told.b),
    })
}

fn slat(told: &wire::Event) -> Option<Detail> {
    let access = match told.way {
        wire::Way::Read => Access::READ,
        wire::Way::Write => Access::WRITE,
        wire::Way::Execute => Access::EXECUTE,
        _ => return None,
    };
    Some(Detail::Slat {
        access,
        gpa: has(told, flag::GPA).then_some(Gpa(told.a))?,
        gva: has(told, flag::GVA).then_some(Gva(told.b)),
        page_walk: has(told, flag::PAGE_WALK),
    })
}

fn io(told: &wire::Event) -> Option<Detail> {
    let port = u16::try_from(told.index).ok()?;
    let bytes = u8::try_from(told.extra).ok().filter(|bytes| matches!(bytes, 1 | 2 | 4))?;
    let value = match told.way {
        wire::Way::To => Some(told.a as u32),
        wire::Way::From => None,
        _ => return None,
    };
    Some(Detail::Io { port, bytes, value })
}

fn table(number: u32) -> Option<DescriptorTable> {
    Some(match number {
        0 => DescriptorTable::Gdtr,
        1 => DescriptorTable::Idtr,
        2 => DescriptorTable::Ldtr,
        3 => DescriptorTable::Tr,
        _ => return None,
    })
}
