//! A request of Xen's as an event.

use vmtree_api::events::{DescriptorTable, Detail, Event, EventKind, Move, Way};
use vmtree_api::{Access, Gpa, Gva, PAGE_SIZE, VcpuId, ViewId};

use super::wire::{Cause, General, Request, access, control};
use crate::views::rules;

/// The access that an event tells of, of those that happened at once and that the rules of the frame don't allow.
#[must_use]
pub fn violated(flags: u32, allowed: Access) -> Access {
    // MEM_ACCESS_R, _W and _X have the bits of rights.
    let happened = rules::access((flags & u32::from(rules::ALL)) as u8);
    let refused = happened.without(allowed);
    let strongest = |set: Access| {
        let order = [Access::EXECUTE, Access::WRITE, Access::READ];
        order.into_iter().find(|access| set.contains(*access))
    };
    strongest(refused).or_else(|| strongest(happened)).unwrap_or(Access::READ)
}

fn address(gfn: u64, offset: u64) -> Gpa {
    Gpa(gfn.wrapping_mul(PAGE_SIZE) | offset % PAGE_SIZE)
}

/// The event that a request tells of, on a view; `allowed` are the rights of the frame that it is about. `None` for what
/// is no event: what Xen asks the driver alone.
#[must_use]
pub fn event(request: &Request, general: &General, view: ViewId, allowed: Access) -> Option<Event> {
    let to = |old, new| Move::To { old, new };
    let (kind, detail) = match request.cause {
        Cause::Access { gfn, offset, gla, flags } => {
            let gva = (flags & access::GLA_VALID != 0).then_some(Gva(gla));
            let (access, gpa) = (violated(flags, allowed), address(gfn, offset));
            let page_walk = flags & access::FAULT_IN_GPT != 0;
            (EventKind::Slat, Detail::Slat { access, gpa, gva, page_walk })
        }
        Cause::Control { index, new, old } => {
            let kind = match index {
                control::CR0 => EventKind::Cr0,
                control::CR3 => EventKind::Cr3,
                control::CR4 => EventKind::Cr4,
                control::XCR0 => EventKind::Xcr0,
                _ => return None,
            };
            (kind, Detail::Control(to(old, new)))
        }
        Cause::Msr { index, new, old } => (EventKind::Msr, Detail::Msr { index, access: to(old, new) }),
        Cause::Breakpoint { gfn, length, .. } => {
            let (gpa, len) = (Some(address(gfn, request.rip)), length as u8);
            (EventKind::Breakpoint, Detail::Breakpoint { gpa, len })
        }
        Cause::Step => (EventKind::SingleStep, Detail::SingleStep),
        Cause::GuestRequest => (EventKind::GuestRequest, Detail::GuestRequest),
        Cause::Cpuid { leaf, subleaf, .. } => (EventKind::Cpuid, Detail::Cpuid { leaf, subleaf }),
        Cause::Descriptor { table, write } => {
            let table = match table {
                1 => DescriptorTable::Idtr,
                2 => DescriptorTable::Gdtr,
                3 => DescriptorTable::Ldtr,
                4 => DescriptorTable::Tr,
                _ => return None,
            };
            let way = if write { Way::To } else { Way::From };
            (EventKind::Descriptor, Detail::Descriptor { table, way })
        }
        Cause::Io { port, bytes, input, .. } => {
            let [rax, ..] = general.gpr;
            let value = (!input).then_some((rax & low(bytes)) as u32);
            (EventKind::Io, Detail::Io { port, bytes: bytes as u8, value })
        }
        Cause::Unemulated => return None,
    };
    let vcpu = VcpuId(request.vcpu);
    Some(Event { vcpu, view, kind, rip: request.rip, cr3: request.cr3, detail })
}

/// The bits of the lowest bytes.
#[must_use]
pub fn low(bytes: u32) -> u64 {
    match bytes {
        1 => 0xff,
        2 => 0xffff,
        _ => 0xffff_ffff,
    }
}

/// RAX after `bytes` of it were read from a port: 4 bytes clear the upper half.
#[must_use]
pub fn merged(rax: u64, bytes: u32, value: u64) -> u64 {
    if bytes >= 4 { value & 0xffff_ffff } else { rax & !low(bytes) | value & low(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(cause: Cause) -> Option<Event> {
        let request = Request { flags: 1, vcpu: 2, view: 0, cause, rip: 0x5123, cr3: 0x1000, user: false };
        let general = General { gpr: [0x1122_3344_5566_7788; 16], rflags: 2, rip: 0x5123 };
        event(&request, &general, ViewId(3), Access::READ.union(Access::EXECUTE))
    }

    #[test]
    fn each_cause_is_an_event_of_its_kind() {
        let slat = of(Cause::Access { gfn: 7, offset: 8, gla: 9, flags: 3 | access::GLA_VALID }).unwrap();
        let detail =
            Detail::Slat { access: Access::WRITE, gpa: Gpa(0x7008), gva: Some(Gva(9)), page_walk: false };
        assert_eq!((slat.kind, slat.detail, slat.view), (EventKind::Slat, detail, ViewId(3)));
        let walk = of(Cause::Access { gfn: 7, offset: 8, gla: 9, flags: 1 | access::FAULT_IN_GPT }).unwrap();
        let detail = Detail::Slat { access: Access::READ, gpa: Gpa(0x7008), gva: None, page_walk: true };
        assert_eq!(walk.detail, detail);
        let breakpoint = of(Cause::Breakpoint { gfn: 5, kind: 6, length: 1 }).unwrap();
        assert_eq!(breakpoint.detail, Detail::Breakpoint { gpa: Some(Gpa(0x5123)), len: 1 });
        let out = of(Cause::Io { port: 0x80, bytes: 2, input: false, string: false }).unwrap();
        assert_eq!(out.detail, Detail::Io { port: 0x80, bytes: 2, value: Some(0x7788) });
        assert_eq!(of(Cause::Control { index: 3, new: 1, old: 0 }).unwrap().kind, EventKind::Xcr0);
        let table = of(Cause::Descriptor { table: 2, write: false }).unwrap();
        assert_eq!(table.detail, Detail::Descriptor { table: DescriptorTable::Gdtr, way: Way::From });
    }

    #[test]
    fn what_is_unknown_is_no_event() {
        assert!(of(Cause::Control { index: 9, new: 0, old: 0 }).is_none());
        assert!(of(Cause::Descriptor { table: 0, write: true }).is_none());
        assert!(of(Cause::Unemulated).is_none());
    }

    #[test]
    fn a_port_read_changes_what_it_reads() {
        assert_eq!(merged(0x1122_3344_5566_7788, 1, 0xaa), 0x1122_3344_5566_77aa);
        assert_eq!(merged(0x1122_3344_5566_7788, 4, 0xaa), 0xaa);
    }
}
