//! Requests to files, apart from how they arrive: made here or by a worker, answered once.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use fuser::{FileAttr, ReplyData, ReplyWrite, Request};
use vmtree_api::{Cancel, Pace};

use super::attr::file_attr;
use super::handles::Handles;
use super::inodes::Inodes;
use super::parked::{Parked, Reply};
use super::passthrough::{self, Passthrough};
use super::stream::Stream;
use crate::error::{FsError, FsResult};
use crate::jobs::Jobs;
use crate::tree::{Caller, Ctx, Place, Shape, Tree, check_length};

/// What all threads of a mount share.
pub struct Core {
    pub tree: Arc<Tree>,
    pub inodes: Inodes,
    pub handles: Handles,
    pub parked: Arc<Parked>,
    pub jobs: Arc<Jobs>,
    pub passthrough: OnceLock<Passthrough>,
    owner: (u32, u32),
    mounted: SystemTime,
}

/// A read or write of a file.
#[derive(Clone, Copy)]
pub struct Access {
    pub place: Place,
    pub handle: u64,
    pub offset: u64,
    pub caller: Caller,
}

impl Core {
    pub fn new(tree: Arc<Tree>, owner: (u32, u32)) -> Arc<Self> {
        let options = tree.options();
        let owner = (options.uid.unwrap_or(owner.0), options.gid.unwrap_or(owner.1));
        let told = tree.clone();
        let parked = Parked::new(options.reply_timeout, move |caller, place, error| {
            told.refuse(caller, &told.path(place), error);
        });
        Arc::new(Self {
            tree,
            inodes: Inodes::default(),
            handles: Handles::default(),
            parked,
            jobs: Arc::default(),
            passthrough: OnceLock::new(),
            owner,
            mounted: SystemTime::now(),
        })
    }

    /// The place of an inode.
    pub fn place(&self, ino: u64) -> FsResult<Place> {
        self.inodes.place(ino).ok_or_else(|| FsError::NoEntry(String::new()))
    }

    /// The attributes of a place.
    pub fn attr(&self, ino: u64, place: Place, caller: Caller) -> FileAttr {
        file_attr(ino, self.tree.attr(place, caller), self.owner, self.mounted)
    }

    /// Notes a refusal where a user would look for it, and returns its errno.
    pub fn refuse(&self, caller: Caller, place: Place, name: Option<&str>, error: &FsError) -> fuser::Errno {
        let path = self.tree.path(place);
        let path = match name {
            Some(name) if path.is_empty() => name.to_owned(),
            Some(name) => format!("{path}/{name}"),
            None => path,
        };
        self.tree.refuse(caller, &path, error);
        fuser::Errno::from_i32(error.errno() as i32)
    }

    /// Serves a read: here if that is quick, else by a worker.
    /// An event file without events has its reader wait, if that is wanted.
    pub fn read(self: &Arc<Self>, access: Access, size: usize, wait: bool, reply: ReplyData) {
        if matches!(self.tree.shape(access.place), Shape::Stream) {
            return match self.stream(access.handle) {
                Some(stream) => stream.read(&self.parked, (access.caller, access.place), size, wait, reply),
                None => reply.error(fuser::Errno::EBADF),
            };
        }
        if self.tree.pace(access.place) == Pace::Prompt {
            return self.read_now(access, size, &Cancel::default(), || Some(reply));
        }
        let Some(ticket) = self.parked.park(access.caller, access.place, Reply::Data(reply)) else { return };
        let core = self.clone();
        self.jobs.post(move || {
            let cancel = ticket.cancel.clone();
            if cancel.raised() {
                return;
            }
            core.read_now(access, size, &cancel, || match ticket.take() {
                Some(Reply::Data(reply)) => Some(reply),
                _ => None,
            });
        });
    }

    fn read_now(
        &self,
        access: Access,
        size: usize,
        cancel: &Cancel,
        reply: impl FnOnce() -> Option<ReplyData>,
    ) {
        let ctx = Ctx { tree: &self.tree, place: access.place, caller: access.caller, cancel };
        let mut reply = Some(reply);
        // The reply is written from inside, while the bytes are lent: no copy of our own.
        let mut answer = |data: &[u8]| {
            if let Some(reply) = reply.take().and_then(|reply| reply()) {
                reply.data(data);
            }
        };
        let result = match self.tree.shape(access.place) {
            Shape::Bytes(bytes) => bytes.read(&ctx, access.offset, size, &mut answer),
            Shape::Block => read_block(&self.tree, access, size, &mut answer),
            Shape::Dir | Shape::Stream | Shape::Content { .. } => self.content(&ctx, access).map(|content| {
                let start = usize::try_from(access.offset).unwrap_or(usize::MAX).min(content.len());
                let end = start.saturating_add(size).min(content.len());
                answer(content.get(start..end).unwrap_or_default());
            }),
        };
        if let Err(error) = result {
            let errno = self.refuse(access.caller, access.place, None, &error);
            if let Some(reply) = reply.take().and_then(|reply| reply()) {
                reply.error(errno);
            }
        }
    }

    /// Generated content: made anew at offset 0, and kept for the open file's later offsets.
    fn content(&self, ctx: &Ctx<'_>, access: Access) -> FsResult<Arc<Vec<u8>>> {
        let file = self.handles.get(access.handle);
        if access.offset > 0
            && let Some(content) = file.as_ref().and_then(|file| file.content())
        {
            return Ok(content);
        }
        let content = Arc::new(self.tree.show(ctx)?);
        if let Some(file) = file {
            file.keep(content.clone());
        }
        Ok(content)
    }

    /// Serves a write: here if that is quick, else by a worker.
    pub fn write(self: &Arc<Self>, access: Access, data: &[u8], reply: ReplyWrite) {
        if self.tree.pace(access.place) == Pace::Prompt {
            let result = self.write_now(access, data, &Cancel::default());
            return answer_write(reply, result);
        }
        let Some(ticket) = self.parked.park(access.caller, access.place, Reply::Write(reply)) else { return };
        let core = self.clone();
        let data = data.to_vec();
        self.jobs.post(move || {
            // Its caller was told that nothing came of it, so nothing may.
            if ticket.cancel.raised() {
                return;
            }
            let result = core.write_now(access, &data, &ticket.cancel);
            if let Some(Reply::Write(reply)) = ticket.take() {
                answer_write(reply, result);
            }
        });
    }

    fn write_now(&self, access: Access, data: &[u8], cancel: &Cancel) -> Result<usize, fuser::Errno> {
        let ctx = Ctx { tree: &self.tree, place: access.place, caller: access.caller, cancel };
        let result = match self.tree.shape(access.place) {
            Shape::Bytes(_) | Shape::Block if self.tree.options().ro => Err(FsError::read_only()),
            Shape::Bytes(bytes) => bytes.write(&ctx, access.offset, data),
            Shape::Block => passthrough::write_at(&self.tree, access.place, access.offset, data),
            Shape::Stream => self.answer_event(access, data),
            // The offset of a write to generated content means nothing: it is a command.
            Shape::Dir | Shape::Content { .. } => self.tree.store(&ctx, data).map(|()| data.len()),
        };
        result.map_err(|error| self.refuse(access.caller, access.place, None, &error))
    }
}

impl Core {
    /// An open event file.
    pub fn stream(&self, handle: u64) -> Option<Arc<Stream>> {
        self.handles.get(handle)?.stream().cloned()
    }

    /// Takes the answer to a held event: at once, so that it gets through whatever the workers wait for.
    fn answer_event(&self, access: Access, data: &[u8]) -> FsResult<usize> {
        let closed = || FsError::NoEntry("this file is closed".to_owned());
        let stream = self.stream(access.handle).ok_or_else(closed)?;
        check_length(data)?;
        stream.write(data).map(|()| data.len())
    }
}

fn answer_write(reply: ReplyWrite, result: Result<usize, fuser::Errno>) {
    match result {
        Ok(written) => reply.written(written as u32),
        Err(errno) => reply.error(errno),
    }
}

/// Who made a request.
pub fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), pid: request.pid() }
}

/// Reads a block where the kernel can't pass it through.
fn read_block(tree: &Tree, access: Access, size: usize, take: &mut dyn FnMut(&[u8])) -> FsResult<()> {
    let mut buf = vec![0; size];
    let got = passthrough::read_at(tree, access.place, access.offset, &mut buf)?;
    take(buf.get(..got).unwrap_or_default());
    Ok(())
}
