//! The conformance suite: checks a mounted VM against what its guest, that of tests/guest, counted itself.
//!
//! It knows nothing of drivers. What a mount offers is read from its `capabilities` and its tree; a check whose
//! capability is missing is told as absent, with the reason that the mount gives. See docs/conformance.md.

#[macro_use]
mod ensure;
mod acts;
mod binary;
mod checks;
mod event;
#[cfg(test)]
mod fake;
mod map;
mod order;
mod pace;
mod perform;
mod pipe;
mod regs;
mod vm;

use std::fmt;

pub use checks::checks;
pub use vm::{PATIENCE, Vm};

/// What a check found: nothing, or what was wrong.
pub type Checked = Result<(), String>;

/// One check.
pub struct Check {
    /// Its name, unique.
    pub name: &'static str,
    /// The lines of `capabilities` that must say yes.
    pub needs: &'static [&'static str],
    /// What it checks, in a line.
    pub about: &'static str,
    /// Performs it. It leaves the VM as it found it: running, with the guest's background traffic on.
    pub run: fn(&Vm) -> Checked,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Summary {
    /// Checks that found nothing wrong.
    pub passed: u32,
    /// Checks that did.
    pub failed: u32,
    /// Checks of what the mount does not offer.
    pub skipped: u32,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Runs every check, or those called `only`, and hands a line for each to `tell`.
pub fn run(vm: &Vm, only: &[String], tell: &mut dyn FnMut(&str)) -> Summary {
    let mut summary = Summary::default();
    for check in checks().filter(|check| only.is_empty() || only.iter().any(|name| name == check.name)) {
        if let Some(reason) = check.needs.iter().find_map(|need| vm.lacks(need)) {
            summary.skipped += 1;
            tell(&format!("absent {}: {reason}", check.name));
            continue;
        }
        match (check.run)(vm) {
            Ok(()) => {
                summary.passed += 1;
                tell(&format!("ok {}", check.name));
            }
            Err(why) => {
                summary.failed += 1;
                tell(&format!("FAILED {}: {}", check.name, why.replace('\n', " | ")));
            }
        }
    }
    summary
}
