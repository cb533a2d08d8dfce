//! Changes to the tree: views are made and removed; nothing else can be.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use fuser::{Errno, Generation, ReplyEmpty, ReplyEntry};

use super::attr::NAME_TTL;
use super::parked::{Reply, Ticket};
use super::requests::Core;
use crate::error::FsError;
use crate::tree::{Caller, Ctx, Place};

impl Core {
    /// Refuses a change to the tree, which only vmtree itself makes.
    pub fn forbid(&self, caller: Caller, parent: u64, name: &OsStr) -> Errno {
        let why = "the files are the VM's parts: none can be made, moved or removed, but for views (mkdir views/NAME)";
        let why = match self.tree.driver().views() {
            Ok(_) => why,
            Err(_) => why.split(", but").next().unwrap_or(why),
        };
        self.refuse_name(caller, parent, name, &FsError::NotPermitted(why.to_owned()))
    }

    /// Refuses to create a file, with the reason why there is none of that name.
    pub fn no_such(&self, caller: Caller, parent: u64, name: &OsStr) -> Errno {
        let dir = self.place(parent).unwrap_or(Place::ROOT);
        let error = match self.tree.child(dir, &name.to_string_lossy()) {
            Err(FsError::NoEntry(why)) if !why.is_empty() => FsError::NoEntry(why),
            found => {
                if let Ok(place) = found {
                    self.tree.forget(place, 1);
                }
                let why = "there is no such file, and none can be created; README lists them";
                FsError::NoEntry(why.to_owned())
            }
        };
        self.refuse_name(caller, parent, name, &error)
    }

    fn refuse_name(&self, caller: Caller, parent: u64, name: &OsStr, error: &FsError) -> Errno {
        let dir = self.place(parent).unwrap_or(Place::ROOT);
        self.refuse(caller, dir, Some(&name.to_string_lossy()), error)
    }

    /// Answers a lookup.
    pub fn lookup(&self, caller: Caller, parent: u64, name: &OsStr, reply: ReplyEntry) {
        let Ok(dir) = self.place(parent) else { return reply.error(Errno::ENOENT) };
        let name = name.to_string_lossy();
        match self.tree.child(dir, &name) {
            Ok(place) => self.found(caller, place, &name, reply),
            // A name that means nothing here is every shell's daily bread, and no refusal.
            Err(FsError::NoEntry(why)) if why.is_empty() => reply.error(Errno::ENOENT),
            Err(error) => reply.error(self.refuse(caller, dir, Some(&name), &error)),
        }
    }

    fn found(&self, caller: Caller, place: Place, name: &str, reply: ReplyEntry) {
        let ino = self.inodes.looked_up(&self.tree, place, name);
        let attr = self.attr(ino, place, caller);
        // A name with a parameter is forgotten at once; a size may change between two calls.
        let ttl = if self.tree.has_parameter(place) { Duration::ZERO } else { NAME_TTL };
        reply.entry_with_ttls(&Duration::ZERO, &ttl, &attr, Generation(0));
    }

    /// Makes a directory, if it is to be a view: by a worker.
    pub fn make_dir(self: &Arc<Self>, caller: Caller, parent: u64, name: &OsStr, reply: ReplyEntry) {
        let Some(dir) = self.views_dir(parent) else { return reply.error(self.forbid(caller, parent, name)) };
        let name = name.to_string_lossy().into_owned();
        self.change(caller, dir, Reply::Entry(reply), move |core, ctx, ticket| {
            let place = match core.tree.make_view(ctx, &name) {
                Ok(place) => place,
                Err(error) => return core.answer_refused(ticket, (ctx, &name), &error),
            };
            match ticket.take() {
                Some(Reply::Entry(reply)) => core.found(ctx.caller, place, &name, reply),
                // Its maker was told that nothing was made.
                _ => {
                    if let Err(error) = core.tree.remove_view(ctx, &name) {
                        log::warn!("views/{name}, whose maker went away: {error}");
                    }
                }
            }
        });
    }

    /// Removes a directory, if it is a view: by a worker.
    pub fn remove_dir(self: &Arc<Self>, caller: Caller, parent: u64, name: &OsStr, reply: ReplyEmpty) {
        let Some(dir) = self.views_dir(parent) else { return reply.error(self.forbid(caller, parent, name)) };
        let name = name.to_string_lossy().into_owned();
        self.change(caller, dir, Reply::Empty(reply), move |core, ctx, ticket| {
            if let Err(error) = core.tree.remove_view(ctx, &name) {
                return core.answer_refused(ticket, (ctx, &name), &error);
            }
            if let Some(Reply::Empty(reply)) = ticket.take() {
                reply.ok();
            }
        });
    }

    /// The directory that views are in, if this is it.
    fn views_dir(&self, ino: u64) -> Option<Place> {
        self.place(ino).ok().filter(|dir| self.tree.holds_views(*dir))
    }

    /// Has a change of the directory `place` made by a worker, unless its caller is gone by then.
    fn change(
        self: &Arc<Self>,
        caller: Caller,
        place: Place,
        reply: Reply,
        work: impl FnOnce(&Self, &Ctx<'_>, Ticket) + Send + 'static,
    ) {
        let Some(ticket) = self.parked.park(caller, place, reply) else { return };
        let core = self.clone();
        self.jobs.post(move || {
            let cancel = ticket.cancel.clone();
            if !cancel.raised() {
                work(&core, &Ctx { tree: &core.tree, place, caller, cancel: &cancel }, ticket);
            }
        });
    }

    fn answer_refused(&self, ticket: Ticket, (ctx, name): (&Ctx<'_>, &str), error: &FsError) {
        if let Some(reply) = ticket.take() {
            self.refuse(ctx.caller, ctx.place, Some(name), error);
            reply.error(error.errno());
        }
    }
}
