//! What is offered of each kind, by what Xen says that this domain can raise.

use vmtree_api::Missing;
use vmtree_api::events::{Action, EventKind, EventOffer, Way};

/// Xen's bits (XEN_DOMCTL_MONITOR_EVENT_*).
mod bit {
    pub const WRITE_CTRLREG: u32 = 0;
    pub const MOV_TO_MSR: u32 = 1;
    pub const SINGLESTEP: u32 = 2;
    pub const SOFTWARE_BREAKPOINT: u32 = 3;
    pub const GUEST_REQUEST: u32 = 4;
    pub const CPUID: u32 = 6;
    pub const DESC_ACCESS: u32 = 9;
    pub const IO: u32 = 13;
}

/// What the domain can do beside raising events.
#[derive(Clone, Copy, Debug)]
pub struct Can {
    /// The kinds of event that Xen can raise, a bit each.
    pub events: u32,
    /// Rights of frames can be taken.
    pub rights: bool,
    /// It may have alternate views.
    pub views: bool,
    /// One vCPU can run alone by Xen's own pauses: it has one only, or Xen pauses single ones.
    pub alone: bool,
}

fn bit(kind: EventKind) -> Option<u32> {
    use EventKind::*;
    match kind {
        Cr0 | Cr3 | Cr4 | Xcr0 => Some(bit::WRITE_CTRLREG),
        Msr => Some(bit::MOV_TO_MSR),
        Breakpoint => Some(bit::SOFTWARE_BREAKPOINT),
        SingleStep => Some(bit::SINGLESTEP),
        Cpuid => Some(bit::CPUID),
        Io => Some(bit::IO),
        Descriptor => Some(bit::DESC_ACCESS),
        GuestRequest => Some(bit::GUEST_REQUEST),
        Cr8 | Dr | Interrupt | Slat => None,
    }
}

/// What Xen does by hardware that is not there.
fn hardware(what: &str) -> Missing {
    Missing::new(format!("Xen does not {what} on this processor"))
        .cure("it does with VMX and EPT: use a host with an Intel processor")
}

/// Why a kind, or a way of it, is not there.
fn missing(kind: EventKind, way: Way, can: Can) -> Option<Missing> {
    use EventKind::*;
    match (kind, way) {
        (Cr8, _) => Some(Missing::new("Xen leaves CR8 to the hardware: no access to it ends in Xen")),
        (Dr, _) => Some(Missing::new(
            "Xen sees the first access to debug registers after each switch of the vCPU, and leaves all others to the hardware",
        )),
        (Interrupt, _) => Some(Missing::new(
            "Xen tells of one interrupt after an answer to another event, and never of exceptions that the guest handles itself",
        )),
        (Cr0 | Cr3 | Cr4, Way::From) => {
            Some(Missing::new("Xen leaves reads of control registers to the hardware"))
        }
        (Msr, Way::From) => Some(Missing::new("Xen's monitor tells of writes alone")),
        (Slat, _) => (!can.rights).then(|| hardware("take the rights of frames")),
        _ => bit(kind).filter(|bit| can.events >> bit & 1 == 0).map(|_| hardware("raise this event")),
    }
}

fn action(kind: EventKind, action: Action, can: Can) -> Option<std::result::Result<(), Missing>> {
    use EventKind::*;
    let lacks = |why: &str| Some(Err(Missing::new(why)));
    match (action, kind) {
        (Action::Deny, SingleStep | Cpuid) => None,
        (Action::Value, SingleStep | Interrupt | Breakpoint | Descriptor) => None,
        (Action::Deny, GuestRequest) => lacks("Xen is in the middle of the request when it asks"),
        (Action::Value, GuestRequest) => lacks("Xen gives a request its result after the answer"),
        (Action::View, _) if !can.views => Some(Err(no_views())),
        _ => Some(Ok(())),
    }
}

/// Whether vCPUs can be stepped, or why not.
///
/// # Errors
/// Why not.
pub fn steps(can: Can) -> std::result::Result<(), Missing> {
    match (has_steps(can.events), can.alone || can.views) {
        (true, true) => Ok(()),
        (true, false) => Err(Missing::new(
            "this Xen can't pause one vCPU of several, so the others would run on while one steps; events/singlestep works",
        )
        .cure(
            "give the domain alternate views, which have the others stand still: altp2m=\"external\" in its configuration, and \
             altp2m=1 on Xen's command line; or one vCPU; or use a Xen that was built with GDBSX, which Debian's was not",
        )),
        (false, _) => Err(hardware("step vCPUs")),
    }
}

/// Whether Xen steps vCPUs, by the events that it can raise.
#[must_use]
pub fn has_steps(events: u32) -> bool {
    events >> bit::SINGLESTEP & 1 == 1
}

/// Why there are no alternate views.
#[must_use]
pub fn no_views() -> Missing {
    Missing::new("Xen gives this domain no alternate views")
        .cure("put altp2m=\"external\" into its configuration, and altp2m=1 on Xen's command line; it needs VMX and EPT")
}

/// All offers, in the order of the kinds; those of which no way is seen tell why.
#[must_use]
pub fn all(can: Can) -> Vec<EventOffer> {
    EventKind::ALL.iter().map(|kind| offer(*kind, can)).collect()
}

fn offer(kind: EventKind, can: Can) -> EventOffer {
    let ways: Vec<_> =
        kind.ways().iter().map(|way| (*way, missing(kind, *way, can).map_or(Ok(()), Err))).collect();
    let seen = ways.iter().any(|(_, seen)| seen.is_ok());
    // What is never seen is never answered.
    let actions = Action::ALL.iter().filter(|_| seen);
    let actions = actions.filter_map(|what| Some((*what, action(kind, *what, can)?))).collect();
    EventOffer { kind, ways, actions, gaps: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_offered_follows_what_xen_can() {
        let none = all(Can { events: 0, rights: false, views: false, alone: true });
        assert!(none.iter().all(|offer| offer.ways.iter().all(|(_, seen)| seen.is_err())));
        let whole = all(Can { events: 0x3fff, rights: true, views: true, alone: true });
        let seen = |kind: EventKind| {
            let offer = whole.iter().find(|offer| offer.kind == kind).unwrap();
            offer.ways.iter().filter(|(_, seen)| seen.is_ok()).count()
        };
        let can = |events| Can { events, rights: false, views: false, alone: true };
        assert!(steps(Can { alone: false, ..can(1 << bit::SINGLESTEP) }).is_err());
        assert!(steps(Can { alone: false, views: true, ..can(1 << bit::SINGLESTEP) }).is_ok());
        assert!(steps(can(1 << bit::SINGLESTEP)).is_ok() && steps(can(!(1 << bit::SINGLESTEP))).is_err());
        use EventKind::*;
        let counts = [(Cr0, 1), (Cr8, 0), (Xcr0, 1), (Dr, 0), (Msr, 1), (Interrupt, 0), (Slat, 3), (Io, 2)];
        for (kind, count) in counts {
            assert_eq!(seen(kind), count, "{kind}");
        }
    }

    #[test]
    fn every_gap_says_why() {
        for offer in all(Can { events: 0x3fff, rights: true, views: false, alone: true }) {
            let gaps = offer.ways.iter().filter_map(|(_, seen)| seen.as_ref().err());
            for gap in gaps.chain(offer.actions.iter().filter_map(|(_, taken)| taken.as_ref().err())) {
                assert!(gap.why.len() > 20, "{}: {gap}", offer.kind);
            }
            let continues =
                offer.actions.iter().any(|(action, taken)| *action == Action::Continue && taken.is_ok());
            assert_eq!(continues, offer.ways.iter().any(|(_, seen)| seen.is_ok()), "{}", offer.kind);
        }
    }
}
