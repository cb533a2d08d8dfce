//! Keeps what the kernel may have cached of live memory from growing old.
//!
//! Reads of a direct I/O file never come from the page cache, but sendfile(2), splice(2) and MAP_PRIVATE do, and there
//! the kernel keeps pages until the file is opened anew. Dropping them now and then bounds their age.

use std::collections::HashSet;
use std::sync::Weak;
use std::thread;
use std::time::Duration;

use fuser::{INodeNo, Notifier};

use super::requests::Core;
use crate::tree::Shape;

/// How old a page in the kernel's cache can get.
const AGE: Duration = Duration::from_secs(1);

/// Drops the cached pages of the open files of live memory once a second, for as long as the mount lives.
pub fn keep(core: Weak<Core>, notifier: Notifier) {
    let keeper = thread::Builder::new().name("vmtree-fresh".to_owned()).spawn(move || {
        while let Some(core) = core.upgrade() {
            for ino in live(&core) {
                // It fails where the kernel has nothing of that inode, and once the mount has ended.
                let _ = notifier.inval_inode(INodeNo(ino), 0, 0);
            }
            drop(core);
            thread::sleep(AGE);
        }
    });
    if let Err(error) = keeper {
        log::warn!("sendfile from mem may be stale while it is open: {error}");
    }
}

/// The inodes of live memory that are open.
fn live(core: &Core) -> HashSet<u64> {
    let live = |ino: &u64| {
        core.inodes.place(*ino).is_some_and(|place| matches!(core.tree.shape(place), Shape::Bytes(_)))
    };
    core.handles.inodes().into_iter().filter(live).collect()
}
