//! `vmtree umount`.

use std::path::Path;
use std::time::Duration;

use super::Failure;
use crate::daemon::presence;
use crate::guardian::mounts;

/// How long to wait for the daemon: it may have to tell a slow hypervisor to resume.
const PATIENCE: Duration = Duration::from_secs(10);

/// Detaches the mount and waits until its daemon has given all back.
pub fn run(mountpoint: &Path) -> Result<(), Failure> {
    let shown = mountpoint.display();
    let path =
        mounts::canonical(mountpoint).map_err(|error| Failure::new(format!("umount {shown}: {error}")))?;
    let found = mounts::at(&path).map_err(|error| Failure::new(format!("read /proc: {error}")))?;
    let Some(mount) = found else {
        let why = format!("umount {shown}: no vmtree mount is there; 'vmtree doctor' lists them");
        return Err(Failure::new(why));
    };
    // Before the detach, so that the daemon can't end in between unseen.
    let mark = mounts::mark(&mount);
    let daemon = presence::watch(&mark);
    mounts::detach(&mark).map_err(|error| {
        Failure::new(format!("umount {shown}: {error}; unmount as the user who mounted it, or as root"))
    })?;
    if daemon.is_none_or(|daemon| daemon.wait_gone(PATIENCE)) {
        return Ok(());
    }
    let seconds = PATIENCE.as_secs();
    Err(Failure::new(format!("umount {shown}: detached, but its daemon still works after {seconds} s")))
}
