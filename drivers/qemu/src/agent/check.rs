//! What is wanted, checked before the agent is told.

use vmtree_agent::frame::LONGEST;
use vmtree_api::events::Wanted;
use vmtree_api::{Error, ErrorKind, MemoryMap, Result};

const OP: &str = "watch events";

/// The most bytes that a rule or a watch takes in a message.
const ROW: usize = 24;

/// # Errors
/// [`ErrorKind::Invalid`] for a rule of no frames, [`ErrorKind::NotFound`] for one outside RAM, [`ErrorKind::NoSpace`] for more than a message holds.
pub fn wanted(wanted: &Wanted, map: &MemoryMap) -> Result<()> {
    let rows = wanted.watches.len() + wanted.rules.len();
    if rows * ROW + 64 > LONGEST {
        let why = format!("{rows} watches and rules are more than the agent takes; use fewer, larger ranges");
        return Err(Error::new(ErrorKind::NoSpace, OP, why));
    }
    wanted.rules.iter().try_for_each(|rule| rule.in_ram(map, OP))
}
