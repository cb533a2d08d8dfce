//! What is wanted, checked before the agent is told.

use vmtree_agent::frame::LONGEST;
use vmtree_api::events::Wanted;
use vmtree_api::views::Rule;
use vmtree_api::{Error, ErrorKind, Gpa, MemoryMap, RegionKind, Result, Span};

const OP: &str = "watch events";

/// The most bytes that a rule or a watch takes in a message.
const ROW: usize = 24;

/// # Errors
/// [`ErrorKind::NotFound`] for a rule outside RAM, [`ErrorKind::NoSpace`] for more than a message holds.
pub fn wanted(wanted: &Wanted, map: &MemoryMap) -> Result<()> {
    let rows = wanted.watches.len() + wanted.rules.len();
    if rows * ROW + 64 > LONGEST {
        let why = format!("{rows} watches and rules are more than the agent takes; use fewer, larger ranges");
        return Err(Error::new(ErrorKind::NoSpace, OP, why));
    }
    wanted.rules.iter().try_for_each(|one| rule(one, map))
}

fn rule(rule: &Rule, map: &MemoryMap) -> Result<()> {
    let (start, end) = (rule.frames.start, rule.frames.end);
    let inside = || Some(is_ram(map, start.gpa()?, end.gpa()?));
    if start < end && inside() == Some(true) {
        return Ok(());
    }
    let why = format!("frames {:#x}-{:#x} are not all RAM; mem.map shows what is", start.0, end.0);
    Err(Error::new(ErrorKind::NotFound, OP, why))
}

/// Whether all of it is RAM, maybe of several regions side by side.
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
