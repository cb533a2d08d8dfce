//! Which rules there can be.

use std::collections::HashMap;

use vmtree_api::views::Rule;
use vmtree_api::{Access, Error, ErrorKind, Gpa, Result};

use crate::ram::Ram;

const OP: &str = "watch";

/// Whether a rule can be: its rights are those of some hardware, and its frames are RAM.
///
/// # Errors
/// [`ErrorKind::Invalid`], [`ErrorKind::NotFound`].
pub fn check(rule: &Rule, ram: &Ram) -> Result<()> {
    if rule.access.contains(Access::WRITE) && !rule.access.contains(Access::READ) {
        // EPT misconfiguration (Intel SDM volume 3C, 29.3.3.1). Execute alone is fine.
        let why = format!("no hardware has {}: whoever may write may read", rule.access);
        return Err(Error::new(ErrorKind::Invalid, OP, why));
    }
    let (start, end) = (rule.frames.start.0, rule.frames.end.0);
    if start >= end {
        return Err(Error::new(ErrorKind::Invalid, OP, "a rule has no frames"));
    }
    let bytes = (end - start).checked_mul(4096).zip(start.checked_mul(4096));
    if !bytes.is_some_and(|(bytes, gpa)| ram.holds(gpa, bytes)) {
        let (start, end) = (Gpa(start.saturating_mul(4096)), Gpa(end.saturating_mul(4096)));
        let why = format!("{start}-{end} is not all in one block of RAM; mem.map shows where there is");
        return Err(Error::new(ErrorKind::NotFound, OP, why));
    }
    Ok(())
}

/// Whether the rules of each view come in ascending order and don't overlap.
///
/// # Errors
/// [`ErrorKind::Invalid`].
pub fn in_order(rules: &[Rule]) -> Result<()> {
    let mut ends: HashMap<u32, u64> = HashMap::new();
    for rule in rules {
        let end = ends.entry(rule.view.0).or_default();
        if rule.frames.start.0 < *end {
            let why = format!("the rules of view {} overlap or are out of order", rule.view.0);
            return Err(Error::new(ErrorKind::Invalid, OP, why));
        }
        *end = rule.frames.end.0;
    }
    Ok(())
}
