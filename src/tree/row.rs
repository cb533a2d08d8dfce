//! What a row of the table can say: what it needs, and what its file is like.

use vmtree_api::events::EventKind;
use vmtree_api::{Driver, Missing};

use super::Ctx;
use crate::error::{FsError, FsResult};

/// What must be there for a file to exist.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Need {
    /// Nothing.
    Nothing,
    /// Host-backed blocks of RAM.
    Blocks,
    /// Registers.
    Registers,
    /// MSRs by index.
    Msrs,
    /// Pause and resume.
    Execution,
    /// Steps.
    Steps,
    /// Registers or execution: something to show of a vCPU.
    Vcpus,
    /// Hardware events.
    Events,
    /// SLAT permissions: events of violations.
    Slat,
    /// SLAT views beside the default one.
    Views,
    /// Permissions or views: something to show of a view.
    SlatOrViews,
    /// Injection.
    Injection,
}

impl Need {
    /// Whether `driver` has it.
    ///
    /// # Errors
    /// Why it has not.
    pub fn met(self, driver: &dyn Driver) -> Result<(), Missing> {
        match self {
            Self::Nothing => Ok(()),
            Self::Blocks if driver.memory().blocks().is_empty() => {
                let missing = Missing::new("the guest's memory is not backed by a file that can be shared");
                Err(missing
                    .cure("start it with a shared memory backend (for QEMU: memory-backend-memfd,share=on)"))
            }
            Self::Blocks => Ok(()),
            Self::Registers => driver.registers().map(drop),
            Self::Msrs => driver.registers()?.msrs().map(drop),
            Self::Execution => driver.execution().map(drop),
            Self::Steps => driver.execution()?.steps(),
            Self::Vcpus => driver.registers().map(drop).or_else(|_| driver.execution().map(drop)),
            Self::Events => driver.events().map(drop),
            Self::Slat => offered(driver, EventKind::Slat),
            Self::Views => driver.views().map(drop),
            Self::SlatOrViews => Self::Slat.met(driver).or_else(|_| Self::Views.met(driver)),
            Self::Injection => driver.injection().map(drop),
        }
    }
}

/// Whether `driver` has events of a kind, in any way.
///
/// # Errors
/// Why it has not.
pub fn offered(driver: &dyn Driver, kind: EventKind) -> Result<(), Missing> {
    let none = || Missing::new("this driver does not have this kind of event");
    let offer = driver.events()?.offers().iter().find(|offer| offer.kind == kind).ok_or_else(none)?;
    let mut why = Err(none());
    for (_, has) in &offer.ways {
        match has {
            Ok(()) => return Ok(()),
            Err(missing) => why = Err(missing.clone()),
        }
    }
    why
}

/// Where a request to a file is served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Work {
    /// At once: nothing but cached facts and memory copies.
    Prompt,
    /// As the driver's registers say.
    Registers,
    /// By a worker.
    Posted,
}

/// Makes the content of a file.
pub type Show = fn(&Ctx<'_>) -> FsResult<Vec<u8>>;
/// Takes what was written to a file: all of it, or nothing and an error.
pub type Store = fn(&Ctx<'_>, &[u8]) -> FsResult<()>;
/// The size of a file that is known without making its content.
pub type Size = fn(&Ctx<'_>) -> u64;

/// The shape of a file.
pub enum Shape {
    /// A directory.
    Dir,
    /// Generated content, read and written whole.
    Content {
        /// How it is read, if it can be.
        show: Option<Show>,
        /// How it is written, if it can be.
        store: Option<Store>,
        /// Its size, where it is the same each time.
        size: Option<Size>,
        /// Where both are served.
        work: Work,
    },
    /// A range of bytes at offsets that mean something.
    Bytes(&'static dyn Bytes),
    /// A host-backed block of RAM.
    Block,
    /// The events of a filter, as a pipe.
    Stream,
}

/// A file, or each file of a group.
pub struct Row {
    /// Its path; a part in braces stands for each vCPU, register or block, or for a parameter.
    pub path: &'static str,
    /// What it is, for the README.
    pub about: &'static str,
    /// What it needs.
    pub need: Need,
    /// What it looks like.
    pub shape: Shape,
}

impl Row {
    /// Its path as it is written for people: N for a vCPU, NAME for a register, block or view,
    /// KIND for a kind of event.
    #[must_use]
    pub fn shown_path(&self) -> String {
        let path = self.path.replace("{vcpu}", "N").replace("{gva}", "gva=ADDR");
        let path = path.replace("{event params}", "KIND,KEY=VALUE...").replace("{event}", "KIND");
        path.replace("{reg}", "NAME").replace("{block}", "NAME").replace("{view}", "NAME")
    }
}

/// A range of bytes at offsets that mean something.
pub trait Bytes: Sync {
    /// Its size in bytes.
    fn size(&self, ctx: &Ctx<'_>) -> u64;

    /// How many of them hold data.
    fn allocated(&self, ctx: &Ctx<'_>) -> u64;

    /// Where requests are served.
    fn work(&self) -> Work;

    /// Hands up to `len` bytes from `offset` on to `take`, once; none at or past the end.
    ///
    /// # Errors
    /// Not even the first byte could be read.
    fn read(&self, ctx: &Ctx<'_>, offset: u64, len: usize, take: &mut dyn FnMut(&[u8])) -> FsResult<()>;

    /// Writes from `offset` on and returns how many bytes were written.
    ///
    /// # Errors
    /// Nothing was written.
    fn write(&self, ctx: &Ctx<'_>, offset: u64, data: &[u8]) -> FsResult<usize>;

    /// SEEK_DATA (`data`) or SEEK_HOLE from `offset` on. Unless it knows better, all of a file is data.
    ///
    /// # Errors
    /// [`FsError::PastTheEnd`] at or past the end.
    fn seek(&self, ctx: &Ctx<'_>, offset: u64, data: bool) -> FsResult<u64> {
        match (offset < self.size(ctx), data) {
            (true, true) => Ok(offset),
            (true, false) => Ok(self.size(ctx)),
            (false, _) => Err(FsError::PastTheEnd),
        }
    }
}
