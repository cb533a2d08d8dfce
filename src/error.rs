//! The filesystem's error, and the one place where an error becomes an errno.

use std::fmt;

use vmtree_api::{Error, ErrorKind, Missing};

/// Why a request was refused.
#[derive(Debug)]
pub enum FsError {
    /// What a driver or a text format said.
    Driver(Error),
    /// There is no such file, and why not.
    NoEntry(String),
    /// The driver has no way to do it.
    Missing(Missing),
    /// A directory was expected.
    NotADirectory,
    /// A file was expected.
    IsADirectory,
    /// There is such a file already, or its name is taken.
    Exists(String),
    /// A change to the tree that only vmtree itself makes.
    NotPermitted(String),
    /// The file does not take this way of opening.
    BadAccess(String),
    /// A write to a control file of more than 128 KiB.
    TooLong(usize),
    /// A seek past the end, or past the last data.
    PastTheEnd,
    /// An address where nothing can be read or written.
    NoMemory(String),
}

/// The result of a filesystem request.
pub type FsResult<T> = Result<T, FsError>;

/// An error number of Linux (include/uapi/asm-generic/errno-base.h and errno.h).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(missing_docs, clippy::upper_case_acronyms, reason = "the manual's names")]
#[repr(i32)]
pub enum Errno {
    EPERM = 1,
    ENOENT = 2,
    EINTR = 4,
    EIO = 5,
    ENXIO = 6,
    E2BIG = 7,
    EACCES = 13,
    EBUSY = 16,
    EEXIST = 17,
    ENODEV = 19,
    ENOTDIR = 20,
    EISDIR = 21,
    EINVAL = 22,
    ENOSPC = 28,
    EROFS = 30,
    ERANGE = 34,
    EPROTO = 71,
    EOPNOTSUPP = 95,
    ETIMEDOUT = 110,
    ESTALE = 116,
}

impl FsError {
    /// The errno that the caller gets.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Driver(error) => errno_of(error.kind()),
            Self::NoEntry(_) => Errno::ENOENT,
            Self::Missing(_) => Errno::EOPNOTSUPP,
            Self::NotADirectory => Errno::ENOTDIR,
            Self::IsADirectory => Errno::EISDIR,
            Self::Exists(_) => Errno::EEXIST,
            Self::NotPermitted(_) => Errno::EPERM,
            Self::BadAccess(_) => Errno::EACCES,
            Self::TooLong(_) => Errno::E2BIG,
            Self::PastTheEnd => Errno::ENXIO,
            Self::NoMemory(_) => Errno::EIO,
        }
    }

    /// The error of a mount made with `-o ro`.
    #[must_use]
    pub fn read_only() -> Self {
        Error::new(ErrorKind::ReadOnly, "write", "this mount is read-only; mount without -o ro").into()
    }
}

fn errno_of(kind: ErrorKind) -> Errno {
    match kind {
        ErrorKind::Invalid => Errno::EINVAL,
        ErrorKind::OutOfRange => Errno::ERANGE,
        ErrorKind::NotFound | ErrorKind::Io => Errno::EIO,
        ErrorKind::Unsupported => Errno::EOPNOTSUPP,
        ErrorKind::Busy => Errno::EBUSY,
        ErrorKind::Denied => Errno::EACCES,
        ErrorKind::ReadOnly => Errno::EROFS,
        ErrorKind::Gone => Errno::ENODEV,
        ErrorKind::TimedOut => Errno::ETIMEDOUT,
        ErrorKind::Interrupted => Errno::EINTR,
        ErrorKind::NoSpace => Errno::ENOSPC,
        ErrorKind::Stale => Errno::ESTALE,
        ErrorKind::Protocol => Errno::EPROTO,
        // A kind that a later drivers/api adds before this table knows it.
        _ => Errno::EIO,
    }
}

impl From<Error> for FsError {
    fn from(error: Error) -> Self {
        Self::Driver(error)
    }
}

impl From<Missing> for FsError {
    fn from(missing: Missing) -> Self {
        Self::Missing(missing)
    }
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Driver(error) => error.fmt(f),
            Self::Missing(missing) => missing.fmt(f),
            Self::NoEntry(why)
            | Self::Exists(why)
            | Self::NotPermitted(why)
            | Self::BadAccess(why)
            | Self::NoMemory(why) => f.write_str(why),
            Self::NotADirectory => f.write_str("not a directory"),
            Self::IsADirectory => f.write_str("this is a directory"),
            Self::TooLong(bytes) => {
                write!(f, "{bytes} bytes in one write; a control file takes at most 131072 at once")
            }
            Self::PastTheEnd => f.write_str("past the end, or past the last data"),
        }
    }
}

impl std::error::Error for FsError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_promise_of_the_contract_has_its_errno() {
        let of = |kind| FsError::from(Error::new(kind, "op", "why")).errno();
        assert_eq!(of(ErrorKind::Invalid), Errno::EINVAL);
        assert_eq!(of(ErrorKind::OutOfRange), Errno::ERANGE);
        assert_eq!(of(ErrorKind::Gone), Errno::ENODEV);
        assert_eq!(of(ErrorKind::Stale), Errno::ESTALE);
        assert_eq!(of(ErrorKind::NoSpace), Errno::ENOSPC);
        assert_eq!(FsError::Exists("why".to_owned()).errno(), Errno::EEXIST);
        assert_eq!(FsError::TooLong(1 << 20).errno(), Errno::E2BIG);
        assert_eq!(FsError::read_only().errno(), Errno::EROFS);
        assert_eq!(FsError::from(Missing::new("no")).errno(), Errno::EOPNOTSUPP);
    }
}
