//! The contract's table of verdicts: what can be answered to which event.

use vmtree_api::events::{Action, Detail, Event, EventKind, EventOffer, Verdict, Way};
use vmtree_api::{Error, ErrorKind, Missing};

use crate::error::{FsError, FsResult};

/// Whether the contract has this action for events of this kind and way.
#[must_use]
pub fn allowed(kind: EventKind, way: Way, action: Action) -> bool {
    use EventKind as K;
    match action {
        Action::Continue | Action::Set | Action::Step | Action::View | Action::Inject => true,
        Action::Deny => match kind {
            K::Cr0 | K::Cr3 | K::Cr4 | K::Cr8 | K::Xcr0 | K::Dr | K::Msr | K::Io => way == Way::To,
            K::Slat => way == Way::Write,
            K::Interrupt | K::Breakpoint => true,
            K::SingleStep | K::Cpuid | K::Descriptor | K::GuestRequest => false,
        },
        Action::Value => match kind {
            K::Cr0 | K::Cr3 | K::Cr4 | K::Cr8 | K::Xcr0 | K::Dr | K::Msr | K::Io | K::Cpuid => true,
            K::Slat => way != Way::Execute,
            K::Interrupt | K::Breakpoint | K::SingleStep | K::Descriptor | K::GuestRequest => false,
        },
    }
}

/// Checks a verdict before it is carried out.
///
/// # Errors
/// [`ErrorKind::Invalid`] where the contract has no such answer, [`FsError::Missing`] where the driver has none,
/// [`ErrorKind::OutOfRange`] for a value that does not fit.
pub fn check(event: &Event, verdict: &Verdict, offer: Option<&EventOffer>) -> FsResult<()> {
    let action = verdict.action();
    let (kind, way) = (event.kind, event.way());
    if !allowed(kind, way, action) {
        let what = [kind.name(), way.name()].join(" ");
        let why = format!("{} is no answer to {}", action.name(), what.trim_end());
        return Err(Error::new(ErrorKind::Invalid, "answer", why).into());
    }
    if let Verdict::Value(value) = verdict
        && let Some(bits) = bits(&event.detail)
        && value >> bits != 0
    {
        let why = format!("value={value:#x} does not fit in the {bits} bits of {kind}");
        return Err(Error::new(ErrorKind::OutOfRange, "answer", why).into());
    }
    if action == Action::Continue {
        return Ok(());
    }
    let row = offer.and_then(|offer| offer.actions.iter().find(|(offered, _)| *offered == action));
    match row {
        Some((_, Ok(()))) => Ok(()),
        Some((_, Err(missing))) => Err(missing.clone().into()),
        None => {
            let why = format!("this driver has no {} for {kind}", action.name());
            Err(FsError::Missing(Missing::new(why)))
        }
    }
}

/// How wide a value can be, where that is less than a verdict holds.
fn bits(detail: &Detail) -> Option<u32> {
    match detail {
        Detail::Control(_) | Detail::Debug { .. } | Detail::Msr { .. } => Some(64),
        Detail::Io { bytes, .. } => Some(u32::from(*bytes).min(8) * 8),
        _ => None,
    }
}
