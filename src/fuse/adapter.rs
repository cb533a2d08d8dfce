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
    BsdFileFlags, Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::attr::NAME_TTL;
use super::inodes::Inodes;
use super::passthrough::Passthrough;
use super::requests::{Access, Core, caller};
use crate::error::FsError;
use crate::tree::{Place, Shape};

/// lseek(2) whence of sparse files (include/uapi/linux/fs.h).
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// The filesystem that fuser calls.
pub struct Adapter {
    core: Arc<Core>,
    ended: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Adapter {
    pub fn new(core: Arc<Core>, ended: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self { core, ended: Some(Box::new(ended)) }
    }

    fn open_flags(&self, place: Place) -> FopenFlags {
        let direct = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
        match self.core.tree.shape(place) {
            Shape::Bytes(_) | Shape::Block => direct | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
            Shape::Dir | Shape::Content { .. } => direct,
        }
    }
}

impl Adapter {
    /// Refuses a change to the tree, which only vmtree itself makes.
    fn forbid(&self, request: &Request, parent: INodeNo, name: &OsStr) -> Errno {
        let error = FsError::NotPermitted(
            "the files are the VM's parts: none can be made, moved or removed".to_owned(),
        );
        self.refuse(request, parent, name, &error)
    }

    /// Refuses to create a file.
    fn no_such(&self, request: &Request, parent: INodeNo, name: &OsStr) -> Errno {
        let error =
            FsError::NoEntry("there is no such file, and none can be created; README lists them".to_owned());
        self.refuse(request, parent, name, &error)
    }

    fn refuse(&self, request: &Request, parent: INodeNo, name: &OsStr, error: &FsError) -> Errno {
        let dir = self.core.place(parent.0).unwrap_or(Place::ROOT);
        self.core.refuse(caller(request), dir, Some(&name.to_string_lossy()), error)
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
        let caller = caller(request);
        let Ok(dir) = self.core.place(parent.0) else { return reply.error(Errno::ENOENT) };
        let name = name.to_string_lossy();
        match self.core.tree.child(dir, &name) {
            Ok(place) => {
                let ino = self.core.inodes.looked_up(&self.core.tree, place);
                let attr = self.core.attr(ino, place, caller);
                // A name with a parameter is forgotten at once; a size may change between two calls.
                let ttl = if self.core.tree.has_parameter(place) { Duration::ZERO } else { NAME_TTL };
                reply.entry_with_ttls(&Duration::ZERO, &ttl, &attr, Generation(0));
            }
            // A name that means nothing here is every shell's daily bread, and no refusal.
            Err(FsError::NoEntry(why)) if why.is_empty() => reply.error(Errno::ENOENT),
            Err(error) => reply.error(self.core.refuse(caller, dir, Some(&name), &error)),
        }
    }

    fn forget(&self, _request: &Request, ino: INodeNo, nlookup: u64) {
        self.core.inodes.forget(ino.0, nlookup);
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
        let caller = caller(request);
        let Ok(place) = self.core.place(ino.0) else { return reply.error(Errno::ENOENT) };
        let (read, write) = match flags.acc_mode() {
            OpenAccMode::O_RDONLY => (true, false),
            OpenAccMode::O_WRONLY => (false, true),
            OpenAccMode::O_RDWR => (true, true),
        };
        if let Err(error) = self.core.tree.check_open(place, read, write) {
            return reply.error(self.core.refuse(caller, place, None, &error));
        }
        if let (Some(block), Some(passthrough)) = (self.core.tree.block(place), self.core.passthrough.get()) {
            match passthrough.open(ino.0, &block, &reply) {
                Ok(Some(backing)) => {
                    let handle = FileHandle(self.core.handles.open(ino.0));
                    return reply.opened_passthrough(handle, FopenFlags::FOPEN_NOFLUSH, &backing);
                }
                Ok(None) => {}
                Err(error) => {
                    log::warn!("ram/{}: the kernel does not pass it through: {error}", block.name);
                    return reply.error(Errno::EIO);
                }
            }
        }
        reply.opened(FileHandle(self.core.handles.open(ino.0)), self.open_flags(place));
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
        self.core.handles.close(handle.0);
        if let Some(passthrough) = self.core.passthrough.get() {
            passthrough.release(ino.0);
        }
        reply.ok();
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Ok(place) = self.core.place(ino.0) else { return reply.error(Errno::ENOENT) };
        let access = Access { place, handle: handle.0, offset, caller: caller(request) };
        self.core.read(access, size as usize, reply);
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
        reply.error(self.no_such(request, parent, name));
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
        reply.error(self.no_such(request, parent, name));
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
        reply.error(self.forbid(request, parent, name));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply.error(self.forbid(request, parent, name));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply.error(self.forbid(request, parent, name));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, _to: &Path, reply: ReplyEntry) {
        reply.error(self.forbid(request, parent, name));
    }

    fn link(&self, request: &Request, _ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        reply.error(self.forbid(request, parent, name));
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
        reply.error(self.forbid(request, parent, name));
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
        _handle: FileHandle,
        _notifier: PollNotifier,
        events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // A file that never blocks is always ready (poll(2)).
        reply.poll(
            events
                & (PollEvents::POLLIN
                    | PollEvents::POLLOUT
                    | PollEvents::POLLRDNORM
                    | PollEvents::POLLWRNORM),
        );
    }
}
