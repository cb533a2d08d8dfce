//! The tree of files, without FUSE: what is there, what it shows, and what it takes.

mod access;
pub mod capabilities;
mod control;
mod events;
mod files;
pub mod info;
mod interned;
mod mem;
mod names;
mod place;
mod refusals;
mod regs;
mod remap;
mod row;
mod table;
mod vcpu;
mod views;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use vmtree_api::{Block, Cancel, Driver, Pace, Pause, RegId, VcpuId};

use crate::error::{FsError, FsResult};
use crate::events::{Clock, Hub};
use crate::memory::{GuestMemory, PageCache};
use crate::text::options::Options;

pub use names::Named;
use place::Leaf;
pub use place::Place;
pub use refusals::Refusal;
pub use row::{Bytes, Row, Shape};

use interned::Interned;
use refusals::Refusals;
use row::Work;
use table::{TABLE, row};
use views::ViewTable;

/// The longest write that a control or register file takes.
const LONGEST_WRITE: usize = 128 << 10;

/// Checks the length of a write to a file of text.
///
/// # Errors
/// [`FsError::TooLong`].
pub fn check_length(data: &[u8]) -> FsResult<()> {
    if data.len() > LONGEST_WRITE { Err(FsError::TooLong(data.len())) } else { Ok(()) }
}

/// Who makes a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller {
    /// Its user.
    pub uid: u32,
    /// Its thread, as the kernel numbers it for us; 0 where it has no number here.
    pub pid: u32,
}

/// One mounted VM.
pub struct Tree {
    driver: Arc<dyn Driver>,
    memory: GuestMemory,
    options: Options,
    source: String,
    pause: Mutex<Option<Pause>>,
    /// The names of all blocks of RAM ever seen; a block's place is its index here, whatever comes and goes beside it.
    blocks: Mutex<Vec<Arc<str>>>,
    refusals: Refusals,
    hub: Arc<Hub>,
    views: Arc<ViewTable>,
    /// The event files whose names have parameters.
    filters: Interned,
    /// How ram/* is served, told by the adapter once it knows.
    passthrough: OnceLock<String>,
}

/// A request to one file.
pub struct Ctx<'a> {
    /// The tree.
    pub tree: &'a Tree,
    /// The file.
    pub place: Place,
    /// Who asks.
    pub caller: Caller,
    /// Raised when the caller has gone.
    pub cancel: &'a Cancel,
}

impl Ctx<'_> {
    /// The vCPU that the file belongs to.
    #[must_use]
    pub fn vcpu(&self) -> VcpuId {
        VcpuId(u32::from(self.place.vcpu))
    }
}

/// What stat(2) tells of a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Attr {
    /// Whether it is a directory.
    pub dir: bool,
    /// Permission bits.
    pub perm: u16,
    /// Its size in bytes.
    pub size: u64,
    /// The bytes that hold data; less than `size` where there are holes.
    pub allocated: u64,
}

impl Tree {
    /// The tree of an open VM; `source` is what the user mounted, and `clock` tells the time of events.
    #[must_use]
    pub fn new(driver: Arc<dyn Driver>, source: String, options: Options, clock: Clock) -> Arc<Self> {
        let cache = PageCache::new(options.cache_bytes, Duration::from_millis(options.cache_ms));
        let memory = GuestMemory::new(driver.clone(), cache, options.holes);
        let views = Arc::new(ViewTable::default());
        let hub = Hub::new(driver.clone(), options.reply_timeout, clock, views.clone());
        Arc::new(Self {
            driver,
            hub,
            views,
            filters: Interned::default(),
            memory,
            options,
            source,
            pause: Mutex::new(None),
            blocks: Mutex::default(),
            refusals: Refusals::default(),
            passthrough: OnceLock::new(),
        })
    }

    /// Tells how ram/* is served, for `info`; the first call counts.
    pub fn note_passthrough(&self, how: &str) {
        let _ = self.passthrough.set(how.to_owned());
    }

    /// The mount's options.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// What the user mounted.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The driver.
    #[must_use]
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// Gives back what this mount holds of the VM: events and their vCPUs, permissions, views, its pause. `gone` where
    /// the VM is. May be called more than once.
    pub fn release(&self, gone: bool) {
        self.hub.end(gone);
        if !gone {
            self.undo_views();
        }
        if let Err(error) = control::give_back(self) {
            log::warn!("giving the VM back: {error}");
        }
    }

    /// What stat(2) tells of a file, without a call to the VM.
    #[must_use]
    pub fn attr(&self, place: Place, caller: Caller) -> Attr {
        let cancel = Cancel::default();
        let ctx = Ctx { tree: self, place, caller, cancel: &cancel };
        let row = row(place.row);
        let (size, allocated) = match &row.shape {
            Shape::Dir | Shape::Stream => (0, 0),
            Shape::Content { size: Some(size), .. } => (size(&ctx), size(&ctx)),
            Shape::Content { show: Some(show), work: Work::Prompt, .. } => {
                let size = show(&ctx).map_or(0, |content| content.len() as u64);
                (size, size)
            }
            Shape::Content { .. } => (0, 0),
            Shape::Bytes(bytes) => (bytes.size(&ctx), bytes.allocated(&ctx)),
            Shape::Block => self.block(place).map_or((0, 0), |block| (block.bytes, block.bytes)),
        };
        Attr { dir: matches!(row.shape, Shape::Dir), perm: self.perm(place), size, allocated }
    }

    /// Permission bits: what the row can do, within what the mount's `mode` allows.
    fn perm(&self, place: Place) -> u16 {
        let mode = self.options.mode.unwrap_or(0o600) as u16;
        let (read, write) = (mode & 0o444, if self.options.ro { 0 } else { mode & 0o222 });
        match &row(place.row).shape {
            Shape::Dir => read | (mode & 0o222) | read >> 2,
            Shape::Content { show, store, .. } => {
                let register = place::leaf(place.row) == Leaf::EachReg;
                let writable =
                    store.is_some() && (!register || regs::writable(self, RegId(place.item as u16)));
                (if show.is_some() { read } else { 0 }) | (if writable { write } else { 0 })
            }
            Shape::Bytes(_) | Shape::Block | Shape::Stream => read | write,
        }
    }

    /// How the requests to a file are to be served.
    #[must_use]
    pub fn pace(&self, place: Place) -> Pace {
        let work = match &row(place.row).shape {
            Shape::Content { work, .. } => *work,
            Shape::Bytes(bytes) => bytes.work(),
            Shape::Dir | Shape::Block | Shape::Stream => Work::Prompt,
        };
        match work {
            Work::Prompt => Pace::Prompt,
            Work::Posted => Pace::Posted,
            Work::Registers => self.driver.registers().map_or(Pace::Prompt, |registers| registers.pace()),
        }
    }

    /// THE table of files.
    #[must_use]
    pub fn rows() -> &'static [Row] {
        TABLE
    }

    /// The shape of a file.
    #[must_use]
    pub fn shape(&self, place: Place) -> &'static Shape {
        &row(place.row).shape
    }

    /// Makes the content of a file.
    ///
    /// # Errors
    /// What its row says.
    pub fn show(&self, ctx: &Ctx<'_>) -> FsResult<Vec<u8>> {
        match self.shape(ctx.place) {
            Shape::Content { show: Some(show), .. } => show(ctx),
            Shape::Dir => Err(FsError::IsADirectory),
            _ => Err(FsError::BadAccess("this file can't be read, only written".to_owned())),
        }
    }

    /// Takes what was written to a file, whole or not at all.
    ///
    /// # Errors
    /// What its row says; nothing is changed then.
    pub fn store(&self, ctx: &Ctx<'_>, data: &[u8]) -> FsResult<()> {
        self.check_writable()?;
        check_length(data)?;
        match self.shape(ctx.place) {
            Shape::Content { store: Some(store), .. } => store(ctx, data),
            Shape::Dir => Err(FsError::IsADirectory),
            _ => Err(FsError::BadAccess("this file can't be written, only read".to_owned())),
        }
    }

    /// Checks that this mount may change the VM.
    fn check_writable(&self) -> FsResult<()> {
        if self.options.ro { Err(FsError::read_only()) } else { Ok(()) }
    }

    /// Checks that a file may be opened for this; the permission bits were checked by the kernel, but not for root.
    ///
    /// # Errors
    /// [`FsError::BadAccess`] for a direction that the file does not have, [`FsError::NoEntry`] for a block that is gone.
    pub fn check_open(&self, place: Place, read: bool, write: bool) -> FsResult<()> {
        if matches!(self.shape(place), Shape::Block) && self.block(place).is_none() {
            return Err(FsError::NoEntry("that block of RAM is gone".to_owned()));
        }
        let perm = self.perm(place);
        if write {
            self.check_writable()?;
        }
        if write && perm & 0o222 == 0 {
            return Err(FsError::BadAccess("this file can only be read".to_owned()));
        }
        if write && !read && matches!(self.shape(place), Shape::Stream) {
            let why = "open it read-only to observe, or read-write (exec 3<>FILE) to control";
            return Err(FsError::BadAccess(why.to_owned()));
        }
        if read && perm & 0o444 == 0 {
            return Err(FsError::BadAccess("this file can only be written".to_owned()));
        }
        Ok(())
    }

    /// SEEK_DATA (`data`) or SEEK_HOLE. All of a file that is not sparse is data.
    ///
    /// # Errors
    /// [`FsError::PastTheEnd`].
    pub fn seek(&self, place: Place, caller: Caller, offset: u64, data: bool) -> FsResult<u64> {
        let cancel = Cancel::default();
        if let Shape::Bytes(bytes) = self.shape(place) {
            return bytes.seek(&Ctx { tree: self, place, caller, cancel: &cancel }, offset, data);
        }
        let size = self.attr(place, caller).size;
        match (offset < size, data) {
            (true, true) => Ok(offset),
            (true, false) => Ok(size),
            (false, _) => Err(FsError::PastTheEnd),
        }
    }

    /// The block of RAM that a file is.
    #[must_use]
    pub fn block(&self, place: Place) -> Option<Block> {
        let name = match self.shape(place) {
            Shape::Block => self.block_name(place)?,
            _ => return None,
        };
        self.driver.memory().blocks().into_iter().find(|block| block.name == name)
    }

    /// Writes a refusal down for `errors`, and logs it.
    pub fn refuse(&self, caller: Caller, path: &str, error: &FsError) {
        self.refusals.add(Refusal::new(caller, path, error));
    }
}
