//! The adapter to fuser: the only place that names it. All it does is carry requests to the tree and answers back.

mod adapter;
mod attr;
mod changes;
mod fresh;
mod handles;
mod inodes;
mod opens;
mod parked;
mod passthrough;
mod requests;
mod stream;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fuser::{Config, MountOption, Session, SessionACL};
use rustix::io::FdFlags;

use crate::tree::Tree;
use fresh::Keeper;
use requests::Core;

/// How long what the kernel was asked may take at the end.
const QUIET: Duration = Duration::from_secs(1);

/// What ends with the mount: the waiting of parked requests, and the thread that drops old pages.
#[derive(Clone)]
pub struct Waiting(Arc<Core>, Keeper);

impl Waiting {
    /// Answers everybody who waits now, and from now on at once; `gone` where the VM is. Readers of events find the end
    /// of the file, or, without a VM, ENODEV.
    pub fn release(&self, gone: bool) {
        self.0.parked.end(gone);
    }

    /// Has the session ask nothing of the kernel any more, without which the process can't go. False where it waits there for a page
    /// whose read nobody answers.
    #[must_use]
    pub fn quiet(&self) -> bool {
        self.1.end(QUIET)
    }
}

/// CLOCK_MONOTONIC in ns, for the time of events.
#[must_use]
pub fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64)
}

/// Mounts `tree` and serves it by background threads; returns once the mount answers. Files belong to `owner` (uid,
/// gid) unless the mount's options say otherwise. `ended` is called once the kernel has ended the session: somebody
/// unmounted. Nothing here ever unmounts: that is the guardian's work.
///
/// # Errors
/// The mount was refused; nothing is left of it.
pub fn serve(
    tree: Arc<Tree>,
    mountpoint: &Path,
    owner: (u32, u32),
    ended: impl FnOnce() + Send + Sync + 'static,
) -> io::Result<Waiting> {
    let options = tree.options().clone();
    let core = Core::new(tree.clone(), owner);
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(tree.source().to_owned()),
        // `Subtype` would only rename the source.
        MountOption::CUSTOM("subtype=vmtree".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoExec,
    ];
    if options.ro {
        config.mount_options.push(MountOption::RO);
    }
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(options.threads as usize);
    config.clone_fd = options.threads > 1;
    let session = Session::new(adapter::Adapter::new(core.clone(), ended), mountpoint, &config)?;
    // fusermount3 hands the device over without it, and a guardian that is started later would keep a killed daemon's
    // connection alive.
    rustix::io::fcntl_setfd(&session, FdFlags::CLOEXEC)?;
    let keeper = Keeper::start(Arc::downgrade(&core), session.notifier());
    let background = session.spawn()?;
    // Dropped, it would unmount whatever lies at that path by then (fuser 0.18, mnt/fuse_pure.rs: is_mounted is
    // inverted). The process ends without it.
    Box::leak(Box::new(background));
    Ok(Waiting(core, keeper))
}
