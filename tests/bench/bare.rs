//! The baseline: the smallest fuser filesystem. It serves one file from memory, and takes writes without keeping them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, ReplyWrite, Request, Session,
    WriteFlags,
};

struct OneFile(Vec<u8>);

impl OneFile {
    fn attr(&self, ino: u64) -> FileAttr {
        let kind = if ino == 1 { FileType::Directory } else { FileType::RegularFile };
        FileAttr {
            ino: INodeNo(ino),
            size: self.0.len() as u64,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

const TTL: Duration = Duration::from_secs(3600);

impl Filesystem for OneFile {
    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "file" {
            reply.entry(&TTL, &self.attr(2), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino.0));
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH);
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let start = (offset as usize).min(self.0.len());
        reply.data(&self.0[start..(start + size as usize).min(self.0.len())]);
    }

    fn write(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.written(data.len() as u32);
    }
}

/// The mounted baseline.
pub struct Bare {
    mountpoint: PathBuf,
    session: Option<BackgroundSession>,
}

impl Bare {
    /// Mounts a file of `bytes` bytes, served by as many threads as vmtree's default.
    pub fn mount(mountpoint: &Path, bytes: usize) -> Self {
        let mut config = Config::default();
        config.n_threads = Some(vmtree::text::options::Options::default().threads as usize);
        config.clone_fd = true;
        let session = Session::new(OneFile((0..bytes).map(|n| n as u8).collect()), mountpoint, &config);
        let session = session.and_then(Session::spawn).expect("the bare mount");
        Self { mountpoint: mountpoint.to_owned(), session: Some(session) }
    }

    pub fn file(&self) -> PathBuf {
        self.mountpoint.join("file")
    }

    pub fn unmount(&mut self) {
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
    }
}
