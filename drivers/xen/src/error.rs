//! Xen's errno as errors of the driver.

use std::io;

use vmtree_api::{Error, ErrorKind};

/// The error numbers that Xen's calls give and that mean something here (asm-generic/errno-base.h).
pub mod number {
    #![allow(missing_docs, reason = "the constants bear the names of errno")]
    pub const EPERM: i32 = 1;
    pub const ENOENT: i32 = 2;
    pub const ESRCH: i32 = 3;
    pub const ENOMEM: i32 = 12;
    pub const EACCES: i32 = 13;
    pub const EBUSY: i32 = 16;
    pub const EEXIST: i32 = 17;
    pub const ENODEV: i32 = 19;
    pub const EINVAL: i32 = 22;
    pub const ENOSPC: i32 = 28;
    pub const ENODATA: i32 = 61;
    pub const EOPNOTSUPP: i32 = 95;
}

/// Whether an error is of this number.
#[must_use]
pub fn is(error: &io::Error, number: i32) -> bool {
    error.raw_os_error() == Some(number)
}

/// The error of a call that Xen refused; `what` names the call.
pub fn refused(op: &'static str, what: impl Into<String>, error: io::Error) -> Error {
    let kind = match error.raw_os_error() {
        Some(number::EPERM | number::EACCES) => ErrorKind::Denied,
        Some(number::ENOENT | number::ESRCH | number::ENODEV) => ErrorKind::Gone,
        Some(number::EBUSY) => ErrorKind::Busy,
        Some(number::EINVAL) => ErrorKind::Invalid,
        Some(number::ENOMEM | number::ENOSPC) => ErrorKind::NoSpace,
        Some(number::EOPNOTSUPP) => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    };
    Error::new(kind, op, what).caused_by(error)
}

/// The domain is no longer there.
#[must_use]
pub fn gone(op: &'static str) -> Error {
    Error::new(ErrorKind::Gone, op, "the domain is gone")
}

/// A vCPU that is not there.
#[must_use]
pub fn no_vcpu(op: &'static str, vcpu: u32, vcpus: u32) -> Error {
    let last = vcpus.saturating_sub(1);
    Error::new(ErrorKind::NotFound, op, format!("there is no vCPU {vcpu}; the last one is {last}"))
}
