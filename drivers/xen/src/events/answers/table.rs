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
//! | descriptor, IN, OUT | instead of it | Xen's emulator (`ports` for what that leaves) | RIP past it |
//! | access to memory | instead of it | one step on a view that allows it, or the emulator | emulated without writes (or `dry`), or #PF |

use vmtree_api::events::{Inject, Verdict};
use vmtree_api::x86::Reg;
use vmtree_api::{Error, ErrorKind, RegId, RegValue, Result, ViewId};

use crate::events::wire::{Cause, control, reason};

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
    /// The vCPU itself carries it out, and what it writes to memory is dropped.
    Dry,
    /// The same, and its reads of memory get these bytes.
    DryWith([u8; 16]),
    /// OUT, with another value.
    Send,
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
    /// The result of CPUID, or of a read of a port; or what is written to one.
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

    /// Whether the vCPU goes on as it would have by itself.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self::new(self.act)
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
        Cause::Io { string: true, .. } => lacks("INS and OUTS take no value: what they move is in memory"),
        Cause::Io { bytes, input, .. } => {
            fits(value, *bytes as usize)?;
            let act = if *input { Act::Past } else { Act::Send };
            Ok(Plan { result: Some(value), ..Plan::new(act) })
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
