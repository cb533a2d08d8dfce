//! What the hypervisor says no with, in vmtree's errors.

use vmtree_api::{Error, ErrorKind};

use crate::port::{Refusal, errno};

/// An error of `op`.
#[must_use]
pub fn error(op: &'static str, refusal: &Refusal) -> Error {
    let number = match refusal {
        Refusal::Gone(why) => return Error::new(ErrorKind::Gone, op, why.clone()),
        Refusal::Errno(number) => *number,
    };
    let (kind, why) = match number {
        errno::EPERM => {
            (ErrorKind::Denied, "this host does not allow it; allow it at QEMU's -object introspection")
        }
        errno::ENOENT => (ErrorKind::NotFound, "the hypervisor has no such page, command or event"),
        errno::EAGAIN => (ErrorKind::Busy, "the vCPU can't be introspected yet; try again once it runs"),
        errno::EBUSY => (ErrorKind::Busy, "the hypervisor is busy with another one"),
        errno::ENOMEM => (ErrorKind::NoSpace, "the hypervisor has no room for it"),
        errno::EINVAL => (ErrorKind::Invalid, "the hypervisor takes it for invalid"),
        errno::EOPNOTSUPP | errno::ENOSYS => (ErrorKind::Unsupported, "this host's KVM does not have it"),
        _ => {
            return Error::new(
                ErrorKind::Protocol,
                op,
                format!("the hypervisor answers with error {number}"),
            );
        }
    };
    Error::new(kind, op, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_has_its_kind() {
        let kind = |number| error("x", &Refusal::Errno(number)).kind();
        assert_eq!(kind(errno::EPERM), ErrorKind::Denied);
        assert_eq!(kind(errno::ENOSYS), ErrorKind::Unsupported);
        assert_eq!(kind(71), ErrorKind::Protocol);
        assert_eq!(error("x", &Refusal::Gone("it went".to_owned())).kind(), ErrorKind::Gone);
    }
}
