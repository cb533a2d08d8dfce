//! The kernel's end of a FUSE connection, ended from outside.
//!
//! A thread that has the kernel drop its pages of a file waits for each that is being read, and no signal ends that wait. Where its process
//! is killed meanwhile the answer never comes, and thread, process and connection would hold each other for ever.

use std::fs;
use std::io;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// Where the control file system is, on most systems (Linux, Documentation/filesystems/fuse/fuse.rst).
const CONTROL: &str = "/sys/fs/fuse/connections";

/// Ends the connection of the mount on this device (`major:minor`): all requests fail, those that wait too. That there is none
/// any more is no error.
///
/// # Errors
/// The right is missing, or the control file system.
pub fn abort(device: &str) -> io::Result<()> {
    // A connection is named by the number of its device, whose major is 0.
    let name = device.rsplit(':').next().unwrap_or(device);
    let done = match fs::write(format!("{CONTROL}/{name}/abort"), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => abort_unseen(name),
        other => other,
    };
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The same where the control file system is mounted nowhere.
fn abort_unseen(name: &str) -> io::Result<()> {
    let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let top = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let path = format!("{name}/abort");
    let file = rustix::fs::openat(&top, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, b"1")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_connection_that_is_not_there_has_ended() {
        // No device has this number.
        let done = super::abort("0:4294967295");
        assert!(
            done.is_ok() || done.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
        );
    }
}
