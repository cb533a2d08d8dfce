//! fuser's trait: each operation takes its request apart and hands it on.
//!
//! ENOSYS is an answer for good and for all files, so no operation gives it for want of one file's support. Those left
//! out here (extended attributes, fallocate, copy_file_range) are fuser's ENOSYS on purpose: no file has them, and the
//! kernel then asks no more.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileHandle, FileType, Filesystem, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::OFlags;

use super::inodes::Inodes;
use super::passthrough::Passthrough;
use super::requests::{Access, Core, caller};

/// lseek(2) whence of sparse files (include/uapi/linux/fs.h).
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// What a file that never blocks is ready for.
const ALWAYS: PollEvents =
    PollEvents::POLLIN.union(PollEvents::POLLOUT).union(PollEvents::POLLRDNORM).union(PollEvents::POLLWRNORM);

/// The filesystem that fuser calls.
pub struct Adapter {
    core: Arc<Core>,
    ended: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Adapter {
    pub fn new(core: Arc<Core>, ended: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self { core, ended: Some(Box::new(ended)) }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Only these: fuser accepts capabilities that it can't honour.
        let passthrough = Passthrough::negotiate(config);
        self.core.tree.note_passthrough(&passthrough.how);
        let _ = self.core.passthrough.set(passthrough);
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn destroy(&mut self) {
        if let Some(ended) = self.ended.take() {
            ended();
        }
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.core.lookup(caller(request), parent.0, name, reply);
    }

    fn forget(&self, _request: &Request, ino: INodeNo, nlookup: u64) {
        if let Some(place) = self.core.inodes.forget(ino.0, nlookup) {
            self.core.tree.forget(place, nlookup);
        }
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.core.place(ino.0) {
            Ok(place) => reply.attr(&Duration::ZERO, &self.core.attr(ino.0, place, caller(request))),
            Err(_) => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if mode.is_some() || uid.is_some() || gid.is_some() {
            return reply.error(Errno::EPERM);
        }
        // Truncation is `>` of a shell, and touch sets times: both are ignored, as /dev/mem does.
        self.getattr(request, ino, handle, reply);
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.core.place(ino.0).and_then(|dir| Ok((dir, self.core.tree.children(dir)?)));
        let Ok((dir, children)) = listed else { return reply.error(Errno::ENOTDIR) };
        let above = Inodes::number(self.core.tree.parent(dir));
        let dots = [(ino.0, FileType::Directory, "."), (above, FileType::Directory, "..")];
        let names = children.iter().map(|child| {
            let kind = if child.dir { FileType::Directory } else { FileType::RegularFile };
            (Inodes::number(child.place), kind, child.name.as_str())
        });
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (next, (number, kind, name)) in (1..).zip(dots.into_iter().chain(names)).skip(from) {
            if reply.add(INodeNo(number), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.core.open(ino.0, caller(request), flags, reply);
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.core.close(ino.0, handle.0);
        reply.ok();
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Ok(place) = self.core.place(ino.0) else { return reply.error(Errno::ENOENT) };
        let access = Access { place, handle: handle.0, offset, caller: caller(request) };
        // As it is now: F_SETFL may have changed it.
        let wait = flags.0 as u32 & OFlags::NONBLOCK.bits() == 0;
        self.core.read(access, size as usize, wait, reply);
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Ok(place) = self.core.place(ino.0) else { return reply.error(Errno::ENOENT) };
        let access = Access { place, handle: handle.0, offset, caller: caller(request) };
        self.core.write(access, data, reply);
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Ok(place) = self.core.place(ino.0) else { return reply.error(Errno::ENOENT) };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        match whence {
            SEEK_DATA | SEEK_HOLE => {}
            _ => return reply.error(Errno::EINVAL),
        }
        match self.core.tree.seek(place, caller(request), offset, whence == SEEK_DATA) {
            Ok(found) => reply.offset(found as i64),
            Err(error) => reply.error(Errno::from_i32(error.errno() as i32)),
        }
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        // No room at all, as /proc: a disk that is always full would alarm whoever watches disks.
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(self.core.no_such(caller(request), parent.0, name));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(self.core.no_such(caller(request), parent.0, name));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.core.make_dir(caller(request), parent.0, name, reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply.error(self.core.forbid(caller(request), parent.0, name));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.core.remove_dir(caller(request), parent.0, name, reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, _to: &Path, reply: ReplyEntry) {
        reply.error(self.core.forbid(caller(request), parent.0, name));
    }

    fn link(&self, request: &Request, _ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        reply.error(self.core.forbid(caller(request), parent.0, name));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        _newparent: INodeNo,
        _newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(self.core.forbid(caller(request), parent.0, name));
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        notifier: PollNotifier,
        events: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        let notifier = flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY).then_some(notifier);
        reply.poll(match self.core.stream(handle.0) {
            Some(stream) => stream.poll(events, notifier),
            // A file that never blocks is always ready (poll(2)).
            None => events & ALWAYS,
        });
    }
}
