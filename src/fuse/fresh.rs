//! Keeps what the kernel caches from growing old: pages of live memory, and names with parameters.
//!
//! Reads of a direct I/O file never come from the page cache, but sendfile(2), splice(2) and MAP_PRIVATE do, and there
//! the kernel keeps pages until the file is opened anew. Dropping them now and then bounds their age.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use parking_lot::Mutex;

use super::requests::Core;
use crate::tree::Shape;

/// How old a page in the kernel's cache can get, and how long a name with parameters stays that nobody uses.
const AGE: Duration = Duration::from_secs(1);

/// Drops what is old once a second.
#[derive(Clone, Default)]
pub struct Keeper(Arc<Mutex<bool>>);

impl Keeper {
    /// Begins, and goes on for as long as the mount lives.
    pub fn start(core: Weak<Core>, notifier: Notifier) -> Self {
        let keeper = Self::default();
        let over = Arc::clone(&keeper.0);
        let started = thread::Builder::new().name("vmtree-fresh".to_owned()).spawn(move || {
            while let Some(core) = core.upgrade() {
                let over = over.lock();
                if *over {
                    return;
                }
                drop_old(&core, &notifier);
                drop((over, core));
                thread::sleep(AGE);
            }
        });
        if let Err(error) = started {
            log::warn!("sendfile from mem may be stale while it is open: {error}");
        }
        keeper
    }

    /// Ends it: the process may go only then. False where it waits for longer than this, for a page whose read nobody answers.
    #[must_use]
    pub fn end(&self, patience: Duration) -> bool {
        self.0.try_lock_for(patience).map(|mut over| *over = true).is_some()
    }
}

/// The notifications fail where the kernel has nothing of that inode or name, and once the mount has ended.
fn drop_old(core: &Core, notifier: &Notifier) {
    let open: HashSet<u64> = core.handles.inodes().into_iter().collect();
    let live = |ino: &&u64| {
        core.inodes.place(**ino).is_some_and(|place| matches!(core.tree.shape(place), Shape::Bytes(_)))
    };
    for ino in open.iter().filter(live) {
        let _ = notifier.inval_inode(INodeNo(*ino), 0, 0);
    }
    for (parent, name) in core.inodes.sweep(&open) {
        let _ = notifier.inval_entry(INodeNo(parent), OsStr::new(&name));
    }
}
