//! Opening and closing: which mode a file is opened in, and the event files, whose opening arms.

use std::sync::Arc;

use fuser::{Errno, FileHandle, FopenFlags, OpenAccMode, OpenFlags, ReplyOpen};
use vmtree_api::Cancel;

use super::parked::Reply;
use super::requests::Core;
use super::stream::Stream;
use crate::events::Mode;
use crate::tree::{Caller, Ctx, Place, Shape};

/// How files of this shape are opened: the same for every open of an inode.
fn open_flags(shape: &Shape) -> FopenFlags {
    let direct = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
    match shape {
        Shape::Bytes(_) | Shape::Block => direct | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
        Shape::Dir | Shape::Content { .. } => direct,
        Shape::Stream => direct | FopenFlags::FOPEN_NONSEEKABLE | FopenFlags::FOPEN_STREAM,
    }
}

impl Core {
    /// Opens a file.
    pub fn open(self: &Arc<Self>, ino: u64, caller: Caller, flags: OpenFlags, reply: ReplyOpen) {
        let Ok(place) = self.place(ino) else { return reply.error(Errno::ENOENT) };
        let (read, write) = match flags.acc_mode() {
            OpenAccMode::O_RDONLY => (true, false),
            OpenAccMode::O_WRONLY => (false, true),
            OpenAccMode::O_RDWR => (true, true),
        };
        if let Err(error) = self.tree.check_open(place, read, write) {
            return reply.error(self.refuse(caller, place, None, &error));
        }
        let shape = self.tree.shape(place);
        if matches!(shape, Shape::Stream) {
            let mode = if write { Mode::Control } else { Mode::Observe };
            return self.open_stream(ino, place, caller, mode, reply);
        }
        if let (Some(block), Some(passthrough)) = (self.tree.block(place), self.passthrough.get()) {
            match passthrough.open(ino, &block, &reply) {
                Ok(Some(backing)) => {
                    let handle = FileHandle(self.handles.open(ino));
                    return reply.opened_passthrough(handle, FopenFlags::FOPEN_NOFLUSH, &backing);
                }
                Ok(None) => {}
                Err(error) => {
                    log::warn!("ram/{}: the kernel does not pass it through: {error}", block.name);
                    return reply.error(Errno::EIO);
                }
            }
        }
        reply.opened(FileHandle(self.handles.open(ino)), open_flags(shape));
    }

    /// Opens an event file by a worker: arming may wait for a hypervisor. A caller that is gone by then leaves nothing
    /// armed.
    fn open_stream(self: &Arc<Self>, ino: u64, place: Place, caller: Caller, mode: Mode, reply: ReplyOpen) {
        let Some(ticket) = self.parked.park(caller, place, Reply::Open(reply)) else { return };
        let core = self.clone();
        self.jobs.post(move || {
            let cancel: Cancel = ticket.cancel.clone();
            if cancel.raised() {
                return;
            }
            let ctx = Ctx { tree: &core.tree, place, caller, cancel: &cancel };
            match core.tree.open_events(&ctx, mode) {
                Ok(file) => {
                    let stream = Stream::new(file, mode == Mode::Control);
                    match ticket.take() {
                        Some(Reply::Open(reply)) => {
                            let handle = core.handles.open_stream(ino, stream);
                            reply.opened(FileHandle(handle), open_flags(&Shape::Stream));
                        }
                        _ => stream.close(),
                    }
                }
                Err(error) => {
                    let Some(reply) = ticket.take() else { return };
                    core.refuse(caller, place, None, &error);
                    reply.error(error.errno());
                }
            }
        });
    }

    /// Closes a file. What an event file holds is let go here, and what it armed is ended by a worker.
    pub fn close(&self, ino: u64, handle: u64) {
        let file = self.handles.close(handle);
        if let Some(stream) = file.and_then(|file| file.stream().cloned()) {
            stream.let_go();
            self.jobs.post(move || stream.close());
        }
        if let Some(passthrough) = self.passthrough.get() {
            passthrough.release(ino);
        }
    }
}
