//! What is done now and then for as long as a VM is open: the map is kept true, and a VM that moves away is noticed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use vmtree_api::{Host, Result};

use crate::backing;
use crate::control::{Control, Session, migrated};
use crate::memory::GuestMemory;
use crate::runstate::Status;

/// The time between two looks at QEMU's mappings, which need no monitor.
const TICK: Duration = Duration::from_secs(1);

/// The same while there is a connection.
const CONNECTED: Duration = Duration::from_millis(250);

/// The time between two looks by the monitor.
const LOOK: Duration = Duration::from_secs(5);

/// The longest time between two tries to get at a monitor that another client holds.
const LONGEST: Duration = Duration::from_secs(60);

/// Keeps what is known of a VM true.
pub struct Keeper {
    pid: u32,
    control: Weak<Control>,
    memory: Arc<GuestMemory>,
    ended: Arc<AtomicBool>,
    host: Arc<dyn Host>,
    large: Vec<(u64, u64)>,
    last: Instant,
    wait: Duration,
}

impl Keeper {
    /// The keeper of the VM of process `pid`, whose map was read just now.
    #[must_use]
    pub fn new(
        pid: u32,
        control: &Arc<Control>,
        memory: Arc<GuestMemory>,
        ended: Arc<AtomicBool>,
        host: Arc<dyn Host>,
    ) -> Self {
        let large = backing::large(&backing::mappings(pid));
        let (control, last) = (Arc::downgrade(control), Instant::now());
        Self { pid, control, memory, ended, host, large, last, wait: LOOK }
    }

    /// Does what is due, and returns when to call again.
    pub fn tick(&mut self) -> Duration {
        let Some(control) = self.control.upgrade() else { return TICK };
        if self.ended.load(Ordering::Acquire) {
            return TICK;
        }
        let changed = self.memory_changed();
        // Whoever holds it uses the monitor, maybe for long.
        let Some(mut session) = control.try_lock() else { return TICK };
        session.tend();
        session.map_suspect |= changed;
        let due = if session.map_suspect { self.wait.min(TICK) } else { self.wait };
        if self.last.elapsed() >= due {
            self.look(&mut session);
        }
        if session.link.is_open() { CONNECTED } else { TICK }
    }

    /// Takes what is unmapped out of the map, and tells whether a look by the monitor is worth it.
    fn memory_changed(&mut self) -> bool {
        let large = backing::large(&backing::mappings(self.pid));
        let changed = large != self.large;
        self.large = large;
        self.memory.prune() || changed
    }

    fn look(&mut self, session: &mut Session) {
        let was_open = session.link.is_open();
        let result = self.ask(session);
        self.last = Instant::now();
        self.wait = match &result {
            Ok(()) => LOOK,
            Err(_) => (self.wait * 2).min(LONGEST),
        };
        if let Err(error) = result {
            log::debug!("the memory map is not looked at: {error}");
        }
        if !was_open && session.pauses == 0 {
            session.link.close();
        }
    }

    fn ask(&self, session: &mut Session) -> Result<()> {
        let line = session.settle()?;
        if session.status()? == Status::Migrated {
            self.ended.store(true, Ordering::Release);
            session.void();
            self.host.ended(migrated().why());
            return Ok(());
        }
        session.map_suspect = !self.memory.refresh_once(&line)?;
        Ok(())
    }
}
