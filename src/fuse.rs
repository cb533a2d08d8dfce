//! TEMPORARY: stands in for the lead's src/fuse until the branches meet. One file, `info`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, UNIX_EPOCH};

use fuser::*;

use crate::tree::Tree;

struct Fs(Arc<Tree>);

impl Fs {
    fn attr(&self, ino: u64) -> FileAttr {
        let time = UNIX_EPOCH;
        FileAttr {
            ino: INodeNo(ino),
            size: if ino == 1 { 0 } else { self.0.info().len() as u64 },
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: if ino == 1 { FileType::Directory } else { FileType::RegularFile },
            perm: if ino == 1 { 0o755 } else { 0o644 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Fs {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "info" {
            reply.entry(&Duration::ZERO, &self.attr(2), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }
    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::ZERO, &self.attr(ino.0));
    }
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }
    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if offset == 0 {
            let _ = reply.add(INodeNo(2), 1, FileType::RegularFile, "info");
        }
        reply.ok();
    }
    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let text = self.0.info();
        let bytes = text.as_bytes();
        let from = (offset as usize).min(bytes.len());
        let to = (from + size as usize).min(bytes.len());
        reply.data(&bytes[from..to]);
    }
}

pub struct Served(mpsc::Sender<Box<dyn FnOnce() + Send>>);

pub fn serve(tree: Arc<Tree>, mountpoint: &Path, _owner: (u32, u32)) -> io::Result<Served> {
    let mut config = Config::default();
    config.n_threads = Some(2);
    config.clone_fd = true;
    config.mount_options = vec![
        MountOption::FSName(tree.source.clone()),
        MountOption::CUSTOM("subtype=vmtree".into()),
        MountOption::DefaultPermissions,
    ];
    let session = Session::new(Fs(tree), mountpoint, &config)?;
    rustix::io::fcntl_setfd(&session, rustix::io::FdFlags::CLOEXEC)?;
    let (sender, receiver) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
    let (up, ended) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        let _ = session.run();
        let _ = up.send(());
    });
    std::thread::spawn(move || {
        let _ = ended.recv();
        if let Ok(f) = receiver.recv() {
            f();
        }
    });
    Ok(Served(sender))
}

impl Served {
    pub fn on_end(&self, f: impl FnOnce() + Send + 'static) {
        let _ = self.0.send(Box::new(f));
    }
}
