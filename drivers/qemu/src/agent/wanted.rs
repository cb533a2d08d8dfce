//! What is wanted, and verdicts, as the agent is told them.

use vmtree_agent::frame::LONGEST;
use vmtree_agent::{self as wire, Kind};
use vmtree_api::events::{EventKind, Inject, Verdict, Wanted, Watch, Way};
use vmtree_api::views::Rule;
use vmtree_api::{Access, Error, ErrorKind, Gpa, MemoryMap, RegionKind, Result, Span, ViewId};

use super::regs;

const OP: &str = "watch events";

/// The longest that a rule or a watch is in a message.
const ROW: usize = 24;

/// A kind's name on the wire.
#[must_use]
pub fn kind(kind: EventKind) -> Kind {
    match kind {
        EventKind::Cr0 => Kind::Cr0,
        EventKind::Cr3 => Kind::Cr3,
        EventKind::Cr4 => Kind::Cr4,
        EventKind::Cr8 => Kind::Cr8,
        EventKind::Xcr0 => Kind::Xcr0,
        EventKind::Dr => Kind::Dr,
        EventKind::Msr => Kind::Msr,
        EventKind::Interrupt => Kind::Interrupt,
        EventKind::Breakpoint => Kind::Breakpoint,
        EventKind::SingleStep => Kind::SingleStep,
        EventKind::Slat => Kind::Slat,
        EventKind::Cpuid => Kind::Cpuid,
        EventKind::Io => Kind::Io,
        EventKind::Descriptor => Kind::Descriptor,
        EventKind::GuestRequest => Kind::GuestRequest,
    }
}

/// A way's name on the wire.
#[must_use]
pub fn way(way: Way) -> wire::Way {
    match way {
        Way::Once => wire::Way::Once,
        Way::To => wire::Way::To,
        Way::From => wire::Way::From,
        Way::Read => wire::Way::Read,
        Way::Write => wire::Way::Write,
        Way::Execute => wire::Way::Execute,
    }
}

/// All that is wanted, for the agent.
///
/// # Errors
/// [`ErrorKind::NotFound`] for a rule outside RAM or of a view, [`ErrorKind::NoSpace`] for more than a message holds.
pub fn wanted(wanted: &Wanted, map: &MemoryMap) -> Result<wire::Wanted> {
    if (wanted.watches.len() + wanted.rules.len()) * ROW + 64 > LONGEST {
        let why = format!("{} rules are more than the agent takes; use fewer, larger ranges", wanted.rules.len());
        return Err(Error::new(ErrorKind::NoSpace, OP, why));
    }
    let watches = wanted.watches.iter().map(watch).collect();
    let rules = wanted.rules.iter().map(|one| rule(one, map)).collect::<Result<_>>()?;
    Ok(wire::Wanted { watches, rules })
}

fn watch(watch: &Watch) -> wire::Watch {
    wire::Watch {
        kind: kind(watch.kind),
        way: watch.way.map(way),
        vcpu: watch.vcpu.map(|vcpu| vcpu.0),
        index: watch.index,
        hold: watch.hold,
    }
}

fn rule(rule: &Rule, map: &MemoryMap) -> Result<wire::Rule> {
    if rule.view != ViewId::default() {
        return Err(Error::new(ErrorKind::NotFound, OP, format!("there is no view {}", rule.view.0)));
    }
    let (start, end) = (rule.frames.start, rule.frames.end);
    let inside = || Some(is_ram(map, start.gpa()?, end.gpa()?));
    if start >= end || inside() != Some(true) {
        let why = format!("frames {:#x}-{:#x} are not all RAM; mem.map shows what is", start.0, end.0);
        return Err(Error::new(ErrorKind::NotFound, OP, why));
    }
    let bit = |right: Access, bit: u8| if rule.access.contains(right) { bit } else { 0 };
    let access = bit(Access::READ, 1) | bit(Access::WRITE, 2) | bit(Access::EXECUTE, 4);
    Ok(wire::Rule { frames: start.0..end.0, access, hold: rule.hold })
}

/// Whether all of it is RAM, maybe of several blocks side by side.
fn is_ram(map: &MemoryMap, start: Gpa, end: Gpa) -> bool {
    let mut at = start;
    while at < end {
        match map.at(at) {
            Span::Region(region) if region.kind == RegionKind::Ram => at = region.end,
            _ => return false,
        }
    }
    true
}

/// A verdict for the agent.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for one of a view, and for a register that the agent can't set.
pub fn verdict(verdict: &Verdict) -> Result<wire::Verdict> {
    Ok(match verdict {
        Verdict::Continue => wire::Verdict::Continue,
        Verdict::Deny => wire::Verdict::Deny,
        Verdict::Value(value) => wire::Verdict::Value(*value),
        Verdict::Set(changes) => wire::Verdict::Set(regs::words(changes)?),
        Verdict::Step(None) => wire::Verdict::Step,
        Verdict::Step(Some(view)) if *view == ViewId::default() => wire::Verdict::Step,
        Verdict::Step(Some(_)) | Verdict::View(_) => {
            return Err(Error::new(ErrorKind::Unsupported, "answer", super::offers::ONE_VIEW));
        }
        Verdict::Inject(inject) => wire::Verdict::Inject(match *inject {
            Inject::PageFault { address, error } => wire::Inject::PageFault { address: address.0, error },
            Inject::Exception { vector, error } => wire::Inject::Exception { vector, error },
            Inject::Interrupt { vector } => wire::Inject::Interrupt { vector },
            Inject::Nmi => wire::Inject::Nmi,
        }),
    })
}
