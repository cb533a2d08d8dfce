//! Events of KVMI in vmtree's terms.

use vmtree_api::events::{DescriptorTable, Detail, Event, EventKind, Move, Way};
use vmtree_api::{Access, Gpa, Gva, VcpuId, ViewId};

use crate::port::{Kind, Told};
use crate::table::RIP;

/// "No such address".
const NO_ADDRESS: u64 = u64::MAX;

/// KVMI's rights in vmtree's.
#[must_use]
pub fn access(bits: u8) -> Access {
    let rights = [(1, Access::READ), (2, Access::WRITE), (4, Access::EXECUTE)];
    let on = rights.iter().filter(|(bit, _)| bits & bit != 0);
    on.fold(Access::NONE, |all, (_, right)| all.union(*right))
}

/// vmtree's rights in KVMI's.
#[must_use]
pub fn bits(access: Access) -> u8 {
    let bit = |right, bit| if access.contains(right) { bit } else { 0 };
    bit(Access::READ, 1) | bit(Access::WRITE, 2) | bit(Access::EXECUTE, 4)
}

fn table(number: u8) -> Option<DescriptorTable> {
    Some(match number {
        1 => DescriptorTable::Idtr,
        2 => DescriptorTable::Gdtr,
        3 => DescriptorTable::Ldtr,
        4 => DescriptorTable::Tr,
        _ => return None,
    })
}

fn detail(kind: &Kind) -> Option<(EventKind, Detail)> {
    Some(match *kind {
        Kind::Cr { cr, old, new } => {
            let kind = match cr {
                0 => EventKind::Cr0,
                3 => EventKind::Cr3,
                4 => EventKind::Cr4,
                _ => return None,
            };
            (kind, Detail::Control(Move::To { old, new }))
        }
        Kind::Msr { msr, old, new } => {
            (EventKind::Msr, Detail::Msr { index: msr, access: Move::To { old, new } })
        }
        Kind::Breakpoint { gpa, len } => {
            let gpa = (gpa != NO_ADDRESS).then_some(Gpa(gpa));
            (EventKind::Breakpoint, Detail::Breakpoint { gpa, len })
        }
        Kind::Fault { gva, gpa, access: bits } => {
            // A fault that lacks nothing is none.
            let access = Some(access(bits)).filter(|access| *access != Access::NONE)?;
            let gva = (gva != NO_ADDRESS).then_some(Gva(gva));
            (EventKind::Slat, Detail::Slat { access, gpa: Gpa(gpa), gva, page_walk: false })
        }
        Kind::Descriptor { table: number, write } => {
            let way = if write { Way::To } else { Way::From };
            (EventKind::Descriptor, Detail::Descriptor { table: table(number)?, way })
        }
        Kind::Cpuid { leaf, subleaf, .. } => (EventKind::Cpuid, Detail::Cpuid { leaf, subleaf }),
        Kind::SingleStep => (EventKind::SingleStep, Detail::SingleStep),
        Kind::Pause | Kind::Unhook | Kind::Other(_) => return None,
    })
}

/// The event; `None` for what is none in vmtree's terms.
#[must_use]
pub fn event(told: &Told) -> Option<Event> {
    let (kind, detail) = detail(&told.kind)?;
    let (vcpu, view) = (VcpuId(u32::from(told.vcpu)), ViewId(u32::from(told.view)));
    let [_, _, cr3, ..] = told.raw.control;
    let rip = told.raw.general.get(RIP).copied().unwrap_or(0);
    Some(Event { vcpu, view, kind, rip, cr3, detail })
}

/// The register, MSR or vector that a watch may pick.
#[must_use]
pub fn index(event: &Event) -> Option<u32> {
    match event.detail {
        Detail::Msr { index, .. } => Some(index),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::port::Raw;
    use proptest::prelude::*;

    pub fn told(vcpu: u16, kind: Kind) -> Told {
        Told { seq: 1, vcpu, view: 0, raw: Raw::default(), kind }
    }

    /// Any kind that a peer may send.
    pub fn kinds() -> impl Strategy<Value = Kind> {
        prop_oneof![
            (any::<u16>(), any::<u64>(), any::<u64>()).prop_map(|(cr, old, new)| Kind::Cr {
                cr: cr % 9,
                old,
                new
            }),
            (any::<u32>(), any::<u64>(), any::<u64>()).prop_map(|(msr, old, new)| Kind::Msr {
                msr,
                old,
                new
            }),
            (any::<u64>(), any::<u8>()).prop_map(|(gpa, len)| Kind::Breakpoint { gpa, len }),
            (any::<u64>(), any::<u64>(), any::<u8>()).prop_map(|(gva, gpa, access)| Kind::Fault {
                gva,
                gpa,
                access
            }),
            (any::<u8>(), any::<bool>())
                .prop_map(|(table, write)| Kind::Descriptor { table: table % 6, write }),
            (any::<u32>(), any::<u32>(), any::<u8>()).prop_map(|(leaf, subleaf, len)| Kind::Cpuid {
                leaf,
                subleaf,
                len
            }),
            Just(Kind::SingleStep),
            Just(Kind::Pause),
            any::<u8>().prop_map(Kind::Other),
        ]
    }

    proptest! {
        #[test]
        fn any_event_is_told_or_left_out(kind in kinds()) {
            if let Some(event) = event(&told(1, kind)) {
                prop_assert!(event.kind.ways().contains(&event.way()));
            }
        }

        #[test]
        fn rights_come_back(rights in 0u8..8) {
            prop_assert_eq!(bits(access(rights)), rights);
        }
    }

    #[test]
    fn what_has_no_address_says_so() {
        let event = event(&told(0, Kind::Fault { gva: NO_ADDRESS, gpa: 0x1000, access: 2 })).unwrap();
        let Detail::Slat { gva, gpa, .. } = event.detail else { panic!() };
        assert_eq!((gva, gpa, event.way()), (None, Gpa(0x1000), Way::Write));
    }
}
