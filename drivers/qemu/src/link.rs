//! The way to QEMU's monitor after the mount: connected when it is needed, and let go again soon.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vmtree_api::{Error, ErrorKind, Result};

use crate::qmp::Qmp;

const OP: &str = "reach QEMU";

/// How long an open connection is kept that nobody uses: others wait for it.
const IDLE: Duration = Duration::from_millis(500);

/// Where the monitor is, and the connection if there is one.
pub struct Link {
    path: PathBuf,
    /// The process that listens there, to tell a QEMU that was started later at the same path.
    peer: Option<u32>,
    ended: Arc<AtomicBool>,
    line: Option<Arc<Qmp>>,
    used: Instant,
}

impl Link {
    /// The link that `qmp` is the first connection of; `ended` is set when QEMU has ended.
    ///
    /// # Errors
    /// Those of [`Qmp::peer`].
    pub fn new(qmp: Qmp, ended: Arc<AtomicBool>) -> Result<Self> {
        let (path, peer) = (qmp.path().to_owned(), qmp.peer()?);
        Ok(Self { path, peer, ended, line: Some(Arc::new(qmp)), used: Instant::now() })
    }

    /// The connection, if there is one.
    #[must_use]
    pub fn line(&self) -> Option<Arc<Qmp>> {
        self.line.clone()
    }

    /// Keeps the connection for a while.
    pub fn touch(&mut self) {
        self.used = Instant::now();
    }

    /// Connects anew.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`] if QEMU has ended, also where another one listens there now; those of [`Qmp::connect`].
    pub fn connect(&mut self) -> Result<Arc<Qmp>> {
        self.close();
        self.check_alive()?;
        let qmp = Qmp::connect(&self.path)?;
        if qmp.peer()? != self.peer {
            let why = format!("another process listens at '{}' now", self.path.display());
            return Err(Error::new(ErrorKind::Gone, OP, why));
        }
        let line = Arc::new(qmp);
        self.line = Some(Arc::clone(&line));
        self.used = Instant::now();
        Ok(line)
    }

    /// # Errors
    /// [`ErrorKind::Gone`] if QEMU has ended, or has handed the VM over.
    pub fn check_alive(&self) -> Result<()> {
        if self.ended.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Gone, OP, "its process has ended, or the VM has moved away"));
        }
        Ok(())
    }

    /// Whether there is a connection.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.line.is_some()
    }

    /// Hangs up, also for those who still have the connection: the server takes no other client before.
    pub fn close(&mut self) {
        if let Some(line) = self.line.take() {
            line.hang_up();
        }
    }

    /// Hangs up if nobody has used the connection for a while.
    pub fn close_if_idle(&mut self) {
        if self.used.elapsed() >= IDLE {
            self.close();
        }
    }
}
