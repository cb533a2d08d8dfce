//! A tree mounted by this process itself, so that its driver can be one of the test's own.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use vmtree::fuse::{self, Waiting};
use vmtree::text::options;
use vmtree::tree::Tree;
use vmtree_api::Driver;

/// Whether this host can mount; if not, says that the test is skipped.
pub fn possible(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    let fuse = std::fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
    if !(root && fuse) {
        println!("SKIPPED {test}: needs root and /dev/fuse");
    }
    root && fuse
}

/// A mount, detached at its end in any case.
pub struct Mounted {
    tree: Arc<Tree>,
    waiting: Waiting,
    ended: mpsc::Receiver<()>,
    dir: tempfile::TempDir,
}

impl Mounted {
    pub fn new(driver: Arc<dyn Driver>) -> Self {
        Self::with(driver, "threads=4")
    }

    pub fn with(driver: Arc<dyn Driver>, list: &str) -> Self {
        let options = options::parse([list]).unwrap();
        let tree = Tree::new(driver, "test:".to_owned(), options, fuse::monotonic);
        let dir = tempfile::tempdir().unwrap();
        let (sender, ended) = mpsc::channel();
        let end = move || {
            let _ = sender.send(());
        };
        let waiting = fuse::serve(tree.clone(), dir.path(), (0, 0), end).unwrap();
        Self { tree, waiting, ended, dir }
    }

    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// What the end of a mount does first.
    pub fn answer_waiting(&self) {
        self.waiting.release(false);
    }

    /// The orderly end: everybody answered, the VM given back, detached, the session over. How long our part of it took:
    /// the session itself lives for as long as any process has a file of it, a child about to exec included.
    pub fn end(self) -> Duration {
        let begun = Instant::now();
        self.waiting.release(false);
        self.tree.release(false);
        self.detach();
        let took = begun.elapsed();
        self.ended.recv_timeout(Duration::from_secs(60)).expect("the session ends once it is detached");
        took
    }

    /// The end up to where the VM is given back, for a mount of which a file is still open.
    pub fn release(self) {
        self.waiting.release(false);
        self.tree.release(false);
    }

    fn detach(&self) {
        let _ = rustix::mount::unmount(self.dir.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.waiting.release(false);
        self.detach();
    }
}
