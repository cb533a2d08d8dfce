//! What can be had of this QEMU, by kind, and why the rest can't.

use vmtree_agent::{Action, Kind, Offer, Subject, Way};

use crate::sys::has;

/// The ways in which a kind happens.
pub fn ways(kind: Kind) -> &'static [Way] {
    match kind {
        Kind::Cr0
        | Kind::Cr3
        | Kind::Cr4
        | Kind::Cr8
        | Kind::Dr
        | Kind::Msr
        | Kind::Io
        | Kind::Descriptor => &[Way::To, Way::From],
        Kind::Xcr0 => &[Way::To],
        Kind::Slat => &[Way::Read, Way::Write, Way::Execute],
        Kind::Interrupt | Kind::Breakpoint | Kind::SingleStep | Kind::Cpuid | Kind::GuestRequest => {
            &[Way::Once]
        }
    }
}

/// Whether a kind is seen in a way.
///
/// # Errors
/// It is not, and why.
pub fn seen(kind: Kind, way: Way) -> Result<(), &'static str> {
    match (kind, way) {
        (Kind::Dr | Kind::Msr, Way::From) => {
            Err("QEMU's plugin interface does not show what the guest would read; see vcpu/N/regs")
        }
        (Kind::Interrupt, _) if !has::discontinuities() => {
            Err("this QEMU's plugin interface does not tell of interrupts; it does from QEMU 10.2 on")
        }
        (Kind::Slat, Way::Execute) if !has::translate() => Err(
            "this QEMU's plugin interface does not tell the physical address of code; it does from QEMU 10.2 on",
        ),
        _ => Ok(()),
    }
}

/// Why CR8 is never written: such a write reaches the local APIC, which asserts that QEMU's lock is held. A callback of an
/// instruction doesn't hold it, and QEMU aborts (cpu_interrupt in system/cpus.c; gdb_write_register of target/i386).
pub const NO_CR8: &str =
    "QEMU's plugin interface can't write cr8: that reaches the interrupt controller without QEMU's lock";

/// Whether an event takes an action: `None` where the contract has it not at all, else why not.
pub fn takes(kind: Kind, way: Way, action: Action) -> Option<Result<(), &'static str>> {
    const NO_PC: &str =
        "this QEMU's plugin interface can't step past an instruction; it can from QEMU 11.0 on";
    const NO_WRITE: &str = "this QEMU's plugin interface can't write registers; it can from QEMU 10.2 on";
    const AFTER: &str = "QEMU's plugin interface tells of it after it has taken place";
    const NO_OUT: &str = "QEMU's plugin interface can't replace what is written to a port";
    let after = kind == Kind::Interrupt || (kind == Kind::Slat && matches!(way, Way::Read | Way::Write));
    let pc = if has::set_pc() { Ok(()) } else { Err(NO_PC) };
    Some(match action {
        Action::Continue => Ok(()),
        Action::Deny => match (kind, way) {
            (Kind::Cpuid | Kind::SingleStep, _) | (_, Way::From) => return None,
            _ if after => Err(AFTER),
            _ => pc,
        },
        Action::Value => match (kind, way) {
            (Kind::Interrupt | Kind::Breakpoint | Kind::SingleStep | Kind::Descriptor, _) => return None,
            (Kind::Slat, Way::Execute) => return None,
            (Kind::Io, Way::To) => Err(NO_OUT),
            (Kind::Cr8, Way::To) => Err(NO_CR8),
            (Kind::Dr | Kind::Xcr0, _) => Err("QEMU's plugin interface can't write this register"),
            _ if after => Err(AFTER),
            _ => pc,
        },
        _ if after => Err(AFTER),
        Action::Set if has::write_register() => Ok(()),
        Action::Set => Err(NO_WRITE),
        Action::Step => Ok(()),
        Action::Inject if !has::discontinuities() || !has::write_memory() => Err(NO_PC),
        Action::Inject => pc,
    })
}

/// Whether a kind takes an action, of which the ways that are seen may think differently.
fn offered(kind: Kind, action: Action) -> Option<Result<(), &'static str>> {
    let ways = ways(kind).iter().filter(|way| seen(kind, **way).is_ok());
    let answers: Vec<_> = ways.filter_map(|way| takes(kind, *way, action)).collect();
    let best = answers.iter().find(|answer| answer.is_ok());
    let worst = answers.iter().find(|answer| answer.is_err());
    match action {
        // What keeps a guest from something must do so in every way, or it is no wall.
        Action::Deny | Action::Value => worst.or(best),
        _ => best.or(worst),
    }
    .copied()
}

/// All of it, as rows.
pub fn rows() -> Vec<Offer> {
    let mut rows = Vec::new();
    for &kind in Kind::ALL {
        for &way in ways(kind) {
            let missing = seen(kind, way).err().map(str::to_owned);
            rows.push(Offer { kind, subject: Subject::Seen(way), missing });
        }
        for &action in Action::ALL {
            if let Some(answer) = offered(kind, action) {
                let missing = answer.err().map(str::to_owned);
                rows.push(Offer { kind, subject: Subject::Takes(action), missing });
            }
        }
    }
    rows
}
