//! The error of every driver: what was tried, why it failed, and of which kind that is. Never an errno.

use std::error::Error as StdError;
use std::fmt;

/// The result of a driver call.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller can do about an error. `src/error.rs` maps each to one errno.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request makes no sense: bad text, a bad option.
    Invalid,
    /// A value does not fit where it should go.
    OutOfRange,
    /// There is no such VM, vCPU, register, or memory.
    NotFound,
    /// This driver or this hypervisor can't do it.
    Unsupported,
    /// Someone else holds it, or the VM is in the wrong state for it.
    Busy,
    /// The right to do it is missing.
    Denied,
    /// The mount is read-only.
    ReadOnly,
    /// The VM is gone.
    Gone,
    /// The answer did not come in time.
    TimedOut,
    /// The caller went away before the answer.
    Interrupted,
    /// A limit of the hypervisor is reached.
    NoSpace,
    /// What was answered is no longer waiting for an answer.
    Stale,
    /// The peer broke its protocol.
    Protocol,
    /// Reading or writing failed, with no better word for it.
    Io,
}

/// Why a driver call failed. It prints as one line: the operation, then the reason.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    op: &'static str,
    why: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind` in the operation `op` ("read memory"), with the reason and, if there is one, the cure.
    pub fn new(kind: ErrorKind, op: &'static str, why: impl Into<String>) -> Self {
        Self { kind, op, why: why.into(), source: None }
    }

    /// The same error with what caused it.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The operation that failed.
    #[must_use]
    pub fn op(&self) -> &'static str {
        self.op
    }

    /// The reason alone, without the operation.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.op, self.why)?;
        match &self.source {
            Some(source) => write!(f, " ({source})"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_prints_operation_reason_and_cause() {
        let cause = std::io::Error::other("connection refused");
        let error = Error::new(ErrorKind::NotFound, "open qemu", "no socket at /run/vm").caused_by(cause);
        assert_eq!(error.to_string(), "open qemu: no socket at /run/vm (connection refused)");
        assert!(error.source().is_some());
    }
}
