//! Open files. A file of generated content keeps, for later offsets, what its read at offset 0 made; an event file is
//! a reader of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::stream::Stream;

/// What one open file remembers.
pub struct OpenFile {
    ino: u64,
    content: Mutex<Option<Arc<Vec<u8>>>>,
    stream: Option<Arc<Stream>>,
}

impl OpenFile {
    /// Its stream, if it is an event file.
    pub fn stream(&self) -> Option<&Arc<Stream>> {
        self.stream.as_ref()
    }

    /// What the last read at offset 0 made.
    pub fn content(&self) -> Option<Arc<Vec<u8>>> {
        self.content.lock().clone()
    }

    /// Keeps what a read at offset 0 made.
    pub fn keep(&self, content: Arc<Vec<u8>>) {
        *self.content.lock() = Some(content);
    }
}

/// The open files of one mount.
#[derive(Default)]
pub struct Handles {
    open: RwLock<HashMap<u64, Arc<OpenFile>>>,
    next: AtomicU64,
}

impl Handles {
    /// Opens one of this inode and returns its number.
    pub fn open(&self, ino: u64) -> u64 {
        self.add(ino, None)
    }

    /// Opens an event file and returns its number.
    pub fn open_stream(&self, ino: u64, stream: Arc<Stream>) -> u64 {
        self.add(ino, Some(stream))
    }

    fn add(&self, ino: u64, stream: Option<Arc<Stream>>) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.write().insert(number, Arc::new(OpenFile { ino, content: Mutex::default(), stream }));
        number
    }

    /// The inodes that are open, once for each open file.
    pub fn inodes(&self) -> Vec<u64> {
        self.open.read().values().map(|file| file.ino).collect()
    }

    /// An open file.
    pub fn get(&self, number: u64) -> Option<Arc<OpenFile>> {
        self.open.read().get(&number).cloned()
    }

    /// Closes one, and returns what it was.
    pub fn close(&self, number: u64) -> Option<Arc<OpenFile>> {
        self.open.write().remove(&number)
    }
}
