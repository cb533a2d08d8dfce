//! `capabilities`: a line each, "yes", or "no" with the reason and the cure.

use std::fmt::Write;

use vmtree_api::events::{Action, EventKind};
use vmtree_api::{Driver, Missing};

use super::Ctx;
use super::row::Need;
use crate::error::FsResult;

/// The file `capabilities`.
pub fn show(ctx: &Ctx<'_>) -> FsResult<Vec<u8>> {
    let text = of_driver(ctx.tree.driver());
    if !ctx.tree.options().ro {
        return Ok(text.into_bytes());
    }
    let read_only = Missing::new("this mount is read-only").cure("mount without -o ro");
    let mut shown = String::new();
    for kept in text.lines() {
        match kept.strip_suffix(" yes") {
            Some(what) if changes(what) => line(&mut shown, what, Err(read_only.clone())),
            _ => shown.extend([kept, "\n"]),
        }
    }
    line(&mut shown, "write", Err(read_only));
    Ok(shown.into_bytes())
}

/// Whether what a line is of changes the VM: observing events does not, answering them does.
fn changes(what: &str) -> bool {
    let answers = |what: &str| {
        let action = what.rsplit_once(' ').map_or("", |(_, action)| action);
        Action::ALL.iter().any(|known| known.name() == action)
    };
    matches!(what, "pause" | "step" | "views" | "injection") || what.starts_with("event ") && answers(what)
}

/// What a driver can do, for `vmtree info` too.
#[must_use]
pub fn of_driver(driver: &dyn Driver) -> String {
    let mut text = String::from("memory yes\n");
    line(&mut text, "ram_files", Need::Blocks.met(driver));
    line(&mut text, "registers", Need::Registers.met(driver));
    line(&mut text, "msrs", Need::Msrs.met(driver));
    line(&mut text, "pause", Need::Execution.met(driver));
    line(&mut text, "step", Need::Steps.met(driver));
    line(&mut text, "virtual_memory", Need::Registers.met(driver));
    line(&mut text, "views", driver.views().map(drop));
    line(&mut text, "injection", driver.injection().map(drop));
    for kind in EventKind::ALL {
        event_lines(&mut text, driver, *kind);
    }
    text
}

fn event_lines(text: &mut String, driver: &dyn Driver, kind: EventKind) {
    let source = match driver.events() {
        Ok(source) => source,
        Err(missing) => return line(text, &format!("event {kind}"), Err(missing)),
    };
    let Some(offer) = source.offers().iter().find(|offer| offer.kind == kind) else {
        let missing = Missing::new("this driver does not have this kind of event");
        return line(text, &format!("event {kind}"), Err(missing));
    };
    for (way, has) in &offer.ways {
        line(text, format!("event {kind} {}", way.name()).trim_end(), has.clone());
    }
    // Where it is never seen, there is nothing to answer.
    if offer.ways.iter().all(|(_, has)| has.is_err()) {
        return;
    }
    for part in kind.parts() {
        let gap = offer.gaps.iter().find(|(name, _)| name == part);
        line(text, &format!("event {kind} {part}"), gap.map_or(Ok(()), |(_, missing)| Err(missing.clone())));
    }
    for (action, has) in &offer.actions {
        line(text, &format!("event {kind} {}", action.name()), has.clone());
    }
}

fn line(text: &mut String, what: &str, has: Result<(), Missing>) {
    let _ = match has {
        Ok(()) => writeln!(text, "{what} yes"),
        Err(missing) => writeln!(text, "{what} no: {missing}"),
    };
}
