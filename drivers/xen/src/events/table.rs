//! THE table of what each verdict does to each cause: which flags Xen gets, and what the driver does itself.
//!
//! | cause | when Xen asks | continue | deny |
//! |---|---|---|---|
//! | cr0 cr3 cr4, MSR | before the write; RIP is past it | Xen writes | Xen does not |
//! | xcr0 | before the write, which no answer stops; RIP is past it | - | the old value is put back |
//! | int3 | instead of it | injected | RIP past it |
//! | step | after the instruction | - | |
//! | guest request | in the middle of its hypercall; RIP is past it | - | |
//! | CPUID | instead of it, with the results in the registers | RIP past it | |
//! | descriptor, IN, OUT | instead of it | Xen's emulator | RIP past it |
//! | access to memory | instead of it | one step on a view that allows it, or the emulator | emulated without writes, or #PF |

use vmtree_api::events::{Inject, Verdict};
use vmtree_api::x86::Reg;
use vmtree_api::{Error, ErrorKind, RegId, RegValue, Result, ViewId};

use super::decode::low;
use super::wire::{Cause, control, reason};

const OP: &str = "answer";

/// What becomes of the instruction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Act {
    /// Nothing more: Xen has done it, or does it when the vCPU goes on.
    Done,
    /// Xen drops the write.
    Drop,
    /// The vCPU goes on behind it.
    Past,
    /// The vCPU tries it again.
    Again,
    /// int3 is delivered.
    Deliver,
    /// Xen's emulator carries it out.
    Emulate,
    /// The same, and what it writes to memory is dropped.
    EmulateDry,
    /// The same, and its reads of memory get these bytes.
    EmulateWith([u8; 16]),
    /// It is carried out on a view, and then the vCPU is back on its own.
    Step(Stage),
}

/// Where an instruction is carried out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// The same view, with all rights.
    Open,
    /// This view.
    On(ViewId),
}

/// What a verdict comes to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    /// What becomes of the instruction.
    pub act: Act,
    /// Registers that are set before.
    pub changes: Vec<(RegId, RegValue)>,
    /// An MSR that is set before.
    pub msr: Option<(u32, u64)>,
    /// The result of CPUID, or of a read of a port.
    pub result: Option<u128>,
    /// What is put into memory in the place of what the guest writes.
    pub memory: Option<u128>,
    /// What is injected.
    pub inject: Option<Inject>,
    /// The view to go on on.
    pub view: Option<ViewId>,
}

impl Plan {
    fn new(act: Act) -> Self {
        let (changes, msr, result, memory, inject, view) = (Vec::new(), None, None, None, None, None);
        Self { act, changes, msr, result, memory, inject, view }
    }
}

/// What the table needs to know beside the cause.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Whether the domain has alternate views, so that a step can be done on another one.
    pub views: bool,
    /// RIP was set since the event: what was about to happen is dropped.
    pub moved: bool,
    /// Whether a denied access would write.
    pub writes: bool,
    /// Whether a denied access would fetch.
    pub fetches: bool,
    /// Whether the vCPU is in ring 3.
    pub user: bool,
    /// The view that the vCPU runs on.
    pub view: ViewId,
}

fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::Invalid, OP, why))
}

fn lacks<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, OP, why))
}

/// Whether Xen has taken RIP past the instruction when it asks.
#[must_use]
pub fn is_past(cause: &Cause) -> bool {
    matches!(cause, Cause::Control { .. } | Cause::Msr { .. } | Cause::GuestRequest)
}

/// The reason that Xen takes an answer for.
#[must_use]
pub fn reason(cause: &Cause) -> u32 {
    match cause {
        Cause::Access { .. } => reason::MEM_ACCESS,
        Cause::Control { .. } => reason::WRITE_CTRLREG,
        Cause::Msr { .. } => reason::MOV_TO_MSR,
        Cause::Breakpoint { .. } => reason::SOFTWARE_BREAKPOINT,
        Cause::Step => reason::SINGLESTEP,
        Cause::GuestRequest => reason::GUEST_REQUEST,
        Cause::Cpuid { .. } => reason::CPUID,
        Cause::Descriptor { .. } => reason::DESCRIPTOR_ACCESS,
        Cause::Unemulated => reason::EMUL_UNIMPLEMENTED,
        Cause::Io { .. } => reason::IO_INSTRUCTION,
    }
}

/// What a write that waits for its answer is of: `cr3`, or the index of an MSR. XCR0 never waits.
#[must_use]
pub fn name(cause: &Cause) -> Option<String> {
    match cause {
        Cause::Control { index: control::CR0, .. } => Some("cr0".to_owned()),
        Cause::Control { index: control::CR3, .. } => Some("cr3".to_owned()),
        Cause::Control { index: control::CR4, .. } => Some("cr4".to_owned()),
        Cause::Msr { index, .. } => Some(format!("{index:#x}")),
        _ => None,
    }
}

/// What a verdict comes to.
///
/// # Errors
/// [`ErrorKind::Invalid`] for verdicts that make no sense here, [`ErrorKind::Unsupported`] for what Xen can't do,
/// [`ErrorKind::OutOfRange`] for values that are too large.
pub fn plan(cause: &Cause, verdict: &Verdict, facts: Facts) -> Result<Plan> {
    match verdict {
        Verdict::Continue => Ok(Plan::new(go_on(cause, facts))),
        Verdict::Set(changes) => {
            let moved = facts.moved || changes.iter().any(|(id, _)| *id == Reg::Rip.id());
            let mut plan = Plan::new(go_on(cause, Facts { moved, ..facts }));
            if moved && let Some(back) = kept(cause) {
                plan.changes.push(back);
            }
            plan.changes.extend(changes.iter().copied());
            Ok(plan)
        }
        Verdict::Deny => deny(cause, facts),
        Verdict::Value(_) if facts.moved => {
            refuse("RIP was set meanwhile: what takes a value does not take place")
        }
        Verdict::Value(value) => replaced(cause, *value),
        Verdict::Step(view) => Ok(step(cause, view.filter(|view| *view != facts.view), facts)),
        Verdict::View(view) => {
            let again = matches!(cause, Cause::Access { .. } | Cause::Breakpoint { .. });
            let act = if again { Act::Again } else { go_on(cause, facts) };
            Ok(Plan { view: Some(*view), ..Plan::new(act) })
        }
        Verdict::Inject(what) => Ok(inject(cause, *what, facts)),
    }
}

/// What would have happened had nobody watched.
fn go_on(cause: &Cause, facts: Facts) -> Act {
    if facts.moved {
        return match cause {
            Cause::Control { index, .. } if *index != control::XCR0 => Act::Drop,
            Cause::Msr { .. } => Act::Drop,
            _ if is_past(cause) => Act::Done,
            _ => Act::Again,
        };
    }
    match cause {
        Cause::Control { .. } | Cause::Msr { .. } | Cause::GuestRequest | Cause::Step => Act::Done,
        Cause::Breakpoint { .. } => Act::Deliver,
        Cause::Cpuid { .. } => Act::Past,
        Cause::Descriptor { .. } | Cause::Io { .. } => Act::Emulate,
        Cause::Access { .. } if facts.views => Act::Step(Stage::Open),
        Cause::Access { .. } => Act::Emulate,
        // The emulator could not: it is done with all rights.
        Cause::Unemulated => Act::Step(Stage::Open),
    }
}

/// The register that Xen writes whatever the answer is, with its value before.
fn kept(cause: &Cause) -> Option<(RegId, RegValue)> {
    match cause {
        Cause::Control { index: control::XCR0, old, .. } => Some((Reg::Xcr0.id(), RegValue::Word(*old))),
        _ => None,
    }
}

fn deny(cause: &Cause, facts: Facts) -> Result<Plan> {
    Ok(Plan::new(match cause {
        Cause::Control { index: control::XCR0, .. } => {
            return Ok(Plan { changes: kept(cause).into_iter().collect(), ..Plan::new(Act::Done) });
        }
        Cause::Control { .. } | Cause::Msr { .. } => Act::Drop,
        _ if facts.moved => Act::Again,
        Cause::Breakpoint { .. } | Cause::Descriptor { .. } | Cause::Io { input: false, .. } => Act::Past,
        Cause::Io { .. } => return refuse("a read of a port can't be denied: give the value instead"),
        Cause::Access { gla, .. } if !facts.writes => {
            // Present, and the right that is missing (Intel SDM volume 3A, 4.7).
            let error = 1 | u32::from(facts.user) << 2 | u32::from(facts.fetches) << 4;
            let fault = Inject::PageFault { address: vmtree_api::Gva(*gla), error };
            return Ok(Plan { inject: Some(fault), ..Plan::new(Act::Again) });
        }
        Cause::Access { .. } => Act::EmulateDry,
        Cause::Cpuid { .. } | Cause::Step => return refuse("it can't be denied: it is done"),
        Cause::GuestRequest | Cause::Unemulated => return lacks("Xen has begun it already when it asks"),
    }))
}

fn fits(value: u128, bytes: usize) -> Result<()> {
    if bytes < 16 && value >> (8 * bytes) != 0 {
        let why = format!("{value:#x} does not fit in {bytes} bytes");
        return Err(Error::new(ErrorKind::OutOfRange, OP, why));
    }
    Ok(())
}

fn replaced(cause: &Cause, value: u128) -> Result<Plan> {
    match cause {
        Cause::Control { index, .. } => {
            fits(value, 8)?;
            let (reg, act) = match *index {
                control::CR0 => (Reg::Cr0, Act::Drop),
                control::CR3 => (Reg::Cr3, Act::Drop),
                control::CR4 => (Reg::Cr4, Act::Drop),
                _ => (Reg::Xcr0, Act::Done),
            };
            Ok(Plan { changes: vec![(reg.id(), RegValue::Word(value as u64))], ..Plan::new(act) })
        }
        Cause::Msr { index, .. } => {
            fits(value, 8)?;
            Ok(Plan { msr: Some((*index, value as u64)), ..Plan::new(Act::Drop) })
        }
        Cause::Cpuid { .. } => Ok(Plan { result: Some(value), ..Plan::new(Act::Past) }),
        Cause::Io { bytes, input, .. } => {
            if value > u128::from(low(*bytes)) {
                fits(value, *bytes as usize)?;
            }
            if !input {
                return lacks(
                    "Xen's emulator writes to a port what RAX has: deny it, or set rax and write anew",
                );
            }
            Ok(Plan { result: Some(value), ..Plan::new(Act::Past) })
        }
        Cause::Access { flags, .. } if flags & 4 != 0 => {
            refuse("a fetch takes no value; deny it, inject, set rip or change the view")
        }
        Cause::Access { flags, .. } if flags & 2 != 0 => {
            Ok(Plan { memory: Some(value), ..Plan::new(Act::EmulateDry) })
        }
        Cause::Access { .. } => Ok(Plan::new(Act::EmulateWith(value.to_le_bytes()))),
        Cause::GuestRequest => lacks("Xen gives a request its result after the answer"),
        Cause::Breakpoint { .. } | Cause::Descriptor { .. } | Cause::Step | Cause::Unemulated => {
            refuse("it takes no value")
        }
    }
}

/// One instruction, on another view where one is given.
fn step(cause: &Cause, view: Option<ViewId>, facts: Facts) -> Plan {
    let again = matches!(cause, Cause::Access { .. } | Cause::Breakpoint { .. } | Cause::Step);
    match view {
        Some(view) if again || facts.moved => Plan::new(Act::Step(Stage::On(view))),
        // What is emulated, or done, is the same on any view.
        _ => Plan::new(go_on(cause, facts)),
    }
}

/// A fault instead; interrupts are made pending, and it continues.
fn inject(cause: &Cause, what: Inject, facts: Facts) -> Plan {
    let mut plan = match what {
        Inject::Interrupt { .. } | Inject::Nmi => Plan::new(go_on(cause, facts)),
        Inject::PageFault { .. } | Inject::Exception { .. } => {
            let dropped = Facts { moved: true, ..facts };
            Plan { changes: kept(cause).into_iter().collect(), ..Plan::new(go_on(cause, dropped)) }
        }
    };
    plan.inject = Some(what);
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vmtree_api::Gva;

    fn facts(views: bool, moved: bool) -> Facts {
        Facts { views, moved, writes: true, fetches: false, user: false, view: ViewId(0) }
    }

    fn causes() -> impl Strategy<Value = Cause> {
        let number = any::<u64>;
        prop_oneof![
            (number(), number(), number(), 1_u32..64).prop_map(|(gfn, offset, gla, flags)| Cause::Access {
                gfn,
                offset,
                gla,
                flags
            }),
            (0_u32..5, number(), number()).prop_map(|(index, new, old)| Cause::Control { index, new, old }),
            (any::<u32>(), number(), number()).prop_map(|(index, new, old)| Cause::Msr { index, new, old }),
            Just(Cause::Breakpoint { gfn: 1, kind: 6, length: 1 }),
            Just(Cause::Step),
            Just(Cause::GuestRequest),
            Just(Cause::Cpuid { length: 2, leaf: 7, subleaf: 0 }),
            (0_u8..6, any::<bool>()).prop_map(|(table, write)| Cause::Descriptor { table, write }),
            Just(Cause::Unemulated),
            (any::<u16>(), any::<bool>()).prop_map(|(port, input)| Cause::Io { port, bytes: 1, input }),
        ]
    }

    proptest! {
        #[test]
        fn going_on_never_fails(cause in causes(), views: bool, moved: bool) {
            let plan = plan(&cause, &Verdict::Continue, facts(views, moved)).unwrap();
            prop_assert!(plan.inject.is_none() && plan.changes.is_empty() && plan.view.is_none());
        }

        #[test]
        fn where_rip_was_set_nothing_of_the_old_instruction_is_done(cause in causes(), views: bool) {
            let plan = plan(&cause, &Verdict::Continue, facts(views, true)).unwrap();
            prop_assert!(matches!(plan.act, Act::Again | Act::Drop | Act::Done));
            prop_assert!(plan_value(&cause, 0).is_err());
        }

        #[test]
        fn any_value_is_taken_or_refused(cause in causes(), value: u128) {
            let _ = plan(&cause, &Verdict::Value(value), facts(true, false));
        }
    }

    fn plan_value(cause: &Cause, value: u128) -> Result<Plan> {
        plan(cause, &Verdict::Value(value), facts(true, true))
    }

    #[test]
    fn what_xen_does_whatever_the_answer_is_put_back() {
        let xcr0 = Cause::Control { index: control::XCR0, new: 7, old: 3 };
        let back = (Reg::Xcr0.id(), RegValue::Word(3));
        let fault = Verdict::Inject(Inject::PageFault { address: Gva(1), error: 2 });
        for verdict in [Verdict::Deny, fault, Verdict::Set(vec![(Reg::Rip.id(), RegValue::Word(9))])] {
            let plan = plan(&xcr0, &verdict, facts(true, false)).unwrap();
            assert_eq!(plan.changes.first(), Some(&back), "{verdict:?}");
        }
        let other = plan(&xcr0, &Verdict::Value(1), facts(true, false)).unwrap();
        assert_eq!(other.changes, [(Reg::Xcr0.id(), RegValue::Word(1))]);
    }

    #[test]
    fn walls_fault_where_a_write_would_be_dropped() {
        let access = Cause::Access { gfn: 5, offset: 0, gla: 0x5000, flags: 1 };
        let read = Facts { writes: false, user: true, ..facts(true, false) };
        let denied = plan(&access, &Verdict::Deny, read).unwrap();
        assert_eq!(denied.inject, Some(Inject::PageFault { address: Gva(0x5000), error: 5 }));
        let fetch = Facts { writes: false, fetches: true, ..facts(true, false) };
        let denied = plan(&access, &Verdict::Deny, fetch).unwrap();
        assert_eq!(denied.inject, Some(Inject::PageFault { address: Gva(0x5000), error: 17 }));
        assert_eq!(plan(&access, &Verdict::Deny, facts(true, false)).unwrap().act, Act::EmulateDry);
        assert_eq!(plan(&access, &Verdict::Continue, facts(false, false)).unwrap().act, Act::Emulate);
    }

    #[test]
    fn a_step_on_another_view_is_done_where_memory_matters() {
        let int3 = Cause::Breakpoint { gfn: 1, kind: 6, length: 1 };
        let step = |view| plan(&int3, &Verdict::Step(view), facts(true, false)).unwrap().act;
        assert_eq!(step(Some(ViewId(2))), Act::Step(Stage::On(ViewId(2))));
        assert_eq!((step(None), step(Some(ViewId(0)))), (Act::Deliver, Act::Deliver));
        let cpuid = Cause::Cpuid { length: 2, leaf: 0, subleaf: 0 };
        let act = plan(&cpuid, &Verdict::Step(Some(ViewId(2))), facts(true, false)).unwrap().act;
        assert_eq!(act, Act::Past);
    }
}
