//! QEMU's gdbstub, opened when it is needed and closed again: a private socket that only we can reach.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use vmtree_api::{Error, ErrorKind, Result};

use super::folder::{self, Folder};
use super::stub::Stub;
use crate::debts::Debts;
use crate::qmp::Qmp;
use crate::said::said;

const OP: &str = "open QEMU's gdbstub";

/// How long an open gdbstub is kept that nobody uses.
const IDLE: Duration = Duration::from_secs(3);

/// The way to the gdbstub of a QEMU.
pub struct Door {
    pid: u32,
    debts: Arc<Debts>,
    open: Option<Open>,
    broke_in: bool,
}

struct Open {
    // Hung up before the folder goes.
    stub: Stub,
    folder: Folder,
    used: Instant,
}

/// A gdbstub that QEMU has.
#[derive(Debug)]
pub struct Taken {
    /// Where it listens, as QEMU words it.
    address: String,
    /// Whether a debugger is connected.
    pub attached: bool,
}

/// The gdbstub that is open now, if there is one.
///
/// # Errors
/// Those of [`Qmp::execute`].
pub fn taken(qmp: &Qmp) -> Result<Option<Taken>> {
    let all = qmp.execute("query-chardev", Value::Null)?;
    let text = |device: &Value, key: &str| device.get(key).and_then(Value::as_str).map(str::to_owned);
    let gdb =
        all.as_array().into_iter().flatten().find(|device| text(device, "label").as_deref() == Some("gdb"));
    let Some(name) = gdb.map(|device| text(device, "filename").unwrap_or_default()) else { return Ok(None) };
    let address = name.strip_prefix("disconnected:").map(str::to_owned);
    Ok(Some(Taken { attached: address.is_none(), address: address.unwrap_or(name) }))
}

/// Closes a gdbstub that a killed vmtree left. Its folder is swept.
///
/// # Errors
/// Those of [`Qmp::execute`].
pub fn clear(qmp: &Qmp) -> Result<()> {
    match taken(qmp)?.is_some_and(|taken| taken.is_left_over()) {
        true => qmp.human("gdbserver none").map(drop),
        false => Ok(()),
    }
}

impl Taken {
    /// The refusal to open another one.
    #[must_use]
    pub fn refusal(&self) -> Error {
        let why = format!(
            "QEMU's gdbstub is in use at '{}', and there is only one; end its debugger and write 'gdbserver none' to \
             QEMU's monitor, or start QEMU without -gdb and -s",
            said(&self.address)
        );
        Error::new(ErrorKind::Busy, OP, why)
    }

    fn folder(&self) -> Option<&Path> {
        let path = self.address.strip_prefix("unix:")?.split(',').next()?;
        Path::new(path).parent()
    }

    /// Whether it was left by a vmtree that was killed, which QEMU may not have noticed yet.
    #[must_use]
    pub fn is_left_over(&self) -> bool {
        self.folder().is_some_and(folder::is_left)
    }
}

impl Door {
    /// The way to the gdbstub of the QEMU with this process id, noted in `debts` while it is open. Nothing is opened yet.
    #[must_use]
    pub fn new(pid: u32, debts: Arc<Debts>) -> Self {
        Self { pid, debts, open: None, broke_in: false }
    }

    /// Whether it is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// The gdbstub, opened if need be. The VM must stand still: connecting would stop it.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if somebody else uses it, [`ErrorKind::Denied`] if QEMU can't make a socket; those of
    /// [`Stub::begin`].
    pub fn stub(&mut self, qmp: &Qmp) -> Result<&mut Stub> {
        if self.open.as_ref().is_some_and(|open| !open.stub.is_sound()) {
            self.close(qmp);
        }
        if let Some(open) = &mut self.open {
            // QEMU hangs up where somebody replaces the gdbstub.
            if open.stub.drain().is_err() {
                self.close(qmp);
            }
        }
        if self.open.is_none() {
            // By connecting, maybe, if somebody let the VM run since.
            self.broke_in = true;
            self.open = Some(self.opened(qmp)?);
        }
        let Some(open) = &mut self.open else {
            return Err(Error::new(ErrorKind::Io, OP, "it is closed again"));
        };
        open.used = Instant::now();
        Ok(&mut open.stub)
    }

    fn opened(&self, qmp: &Qmp) -> Result<Open> {
        clear(qmp)?;
        folder::sweep();
        if let Some(taken) = taken(qmp)? {
            return Err(taken.refusal());
        }
        let folder = Folder::new(self.pid)?;
        self.debts.gdbstub(folder.path())?;
        let answer =
            qmp.human(&format!("gdbserver unix:{},server=on,wait=off", folder.socket().display()))?;
        match connect(&folder, &answer).and_then(Stub::begin) {
            Ok(stub) => Ok(Open { stub, folder, used: Instant::now() }),
            Err(error) => {
                self.shut(qmp, &folder);
                Err(error)
            }
        }
    }

    /// Closes a gdbstub that left a request without an answer: before the VM runs, or what is still in the socket would
    /// stop it.
    pub fn close_if_broken(&mut self, qmp: &Qmp) {
        if self.open.as_ref().is_some_and(|open| !open.stub.is_sound()) {
            self.close(qmp);
        }
    }

    /// Whether a request stopped a VM that somebody had let run meanwhile, and was lost; also whether connecting may have. Told once.
    #[must_use]
    pub fn take_broke_in(&mut self) -> bool {
        std::mem::take(&mut self.broke_in)
    }

    /// Drops our end: QEMU is gone.
    pub fn forget(&mut self) {
        self.open = None;
        self.debts.gdbstub_done();
    }

    /// Whether nobody has used it for a while. Else takes what has come, for QEMU not to wait with it.
    #[must_use]
    pub fn is_idle(&mut self) -> bool {
        self.open.as_mut().is_some_and(|open| open.used.elapsed() >= IDLE || open.stub.drain().is_err())
    }

    /// Closes it, if it is open; somebody else's that took its place stays.
    pub fn close(&mut self, qmp: &Qmp) {
        if let Some(Open { stub, folder, .. }) = self.open.take() {
            self.broke_in |= stub.broke_in();
            drop(stub);
            self.shut(qmp, &folder);
        }
    }

    /// Closes QEMU's end, if it is ours.
    fn shut(&self, qmp: &Qmp, folder: &Folder) {
        let ours = |taken: Taken| taken.folder() == Some(folder.path());
        let closed = taken(qmp).and_then(|taken| match taken.is_some_and(ours) {
            true => qmp.human("gdbserver none").map(drop),
            false => Ok(()),
        });
        match closed {
            Ok(()) => self.debts.gdbstub_done(),
            Err(error) => log::warn!("QEMU's gdbstub stays open until the next mount: {error}"),
        }
    }
}

fn connect(folder: &Folder, answer: &str) -> Result<UnixStream> {
    UnixStream::connect(folder.socket()).map_err(|error| {
        let why = format!(
            "QEMU opened no gdbstub at '{}': '{}'; it must be able to make a socket there",
            folder.socket().display(),
            said(answer)
        );
        Error::new(ErrorKind::Denied, OP, why).caused_by(error)
    })
}
