//! What every fuzz target asks of every parser.

use vmtree_api::Result;

/// The longest error: a user reads it in `errors` or on a terminal.
const LONGEST: usize = 1000;

/// The value of a parse. An error must be one short line without control characters, or the target fails.
pub fn checked<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let line = error.to_string();
            assert!(!line.contains(char::is_control), "control characters in the error {line:?}");
            assert!(line.len() <= LONGEST, "an error of {} bytes: {line}", line.len());
            None
        }
    }
}
