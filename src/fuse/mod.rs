//! The adapter to fuser: the only place that names it. All it does is carry requests to the tree and answers back.

mod adapter;
mod attr;
mod handles;
mod inodes;
mod parked;
mod passthrough;
mod requests;

use std::io;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;

use fuser::{Config, MountOption, Session, SessionACL};

use crate::tree::Tree;
use requests::Core;

/// A filesystem that is being served. It is never unmounted from here: that is the guardian's work.
pub struct Served {
    core: Arc<Core>,
    ended: mpsc::Receiver<()>,
}

impl Served {
    /// Answers everybody who waits, for good. The tree is given back by its owner.
    pub fn release_waiting(&self) -> Releaser {
        Releaser(self.core.clone())
    }

    /// Calls `then` on a thread of its own once the kernel has ended the session: somebody unmounted.
    pub fn on_end(self, then: impl FnOnce() + Send + 'static) {
        let ended = self.ended;
        let waiting = thread::Builder::new().name("vmtree-end".to_owned()).spawn(move || {
            let _ = ended.recv();
            then();
        });
        if let Err(error) = waiting {
            log::error!("an unmount from outside will not be noticed: {error}");
        }
    }
}

/// Ends the waiting of parked requests; may be kept when the [`Served`] has been handed on.
#[derive(Clone)]
pub struct Releaser(Arc<Core>);

impl Releaser {
    /// Answers everybody who waits now, and from now on at once.
    pub fn release(&self) {
        self.0.parked.end();
    }
}

/// Mounts `tree` and serves it by background threads; returns once the mount answers. Files belong to `owner` (uid,
/// gid) unless the mount's options say otherwise.
///
/// # Errors
/// The mount was refused; nothing is left of it.
pub fn serve(tree: Arc<Tree>, mountpoint: &Path, source: &str, owner: (u32, u32)) -> io::Result<Served> {
    let options = tree.options().clone();
    let (end, ended) = mpsc::channel();
    let core = Core::new(tree, owner);
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(source.to_owned()),
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
    let session = Session::new(adapter::Adapter::new(core.clone(), end), mountpoint, &config)?;
    let background = session.spawn()?;
    // Dropped, it would unmount whatever lies at that path by then (fuser 0.18, mnt/fuse_pure.rs: is_mounted is
    // inverted). The process ends without it.
    Box::leak(Box::new(background));
    Ok(Served { core, ended })
}
