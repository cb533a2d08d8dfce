//! Which rules there can be.

use vmtree_api::views::Rule;
use vmtree_api::{Error, ErrorKind, Gpa, Result};

use crate::ram::Ram;

const OP: &str = "watch";

/// Whether a rule can be: its rights are those of some hardware, and its frames are RAM.
///
/// # Errors
/// [`ErrorKind::Invalid`], [`ErrorKind::NotFound`].
pub fn check(rule: &Rule, ram: &Ram) -> Result<()> {
    rule.has_rights(OP)?;
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
