//! The thread that takes events from the driver. It lives while something is armed.

use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use vmtree_api::events::EventSource;
use vmtree_api::{Error, ErrorKind, Result};

use super::hub::Hub;

/// How long one call of the driver waits for an event, and so how long an idle pump outlives what was armed.
const WAIT: Duration = Duration::from_millis(100);
/// How long an end waits for the pump.
const END: Duration = Duration::from_secs(1);

/// Whether the thread runs, and whether it should.
#[derive(Default)]
pub struct Pump {
    state: Mutex<State>,
    stopped: Condvar,
}

#[derive(Default)]
struct State {
    running: Option<ThreadId>,
    armed: bool,
}

impl Pump {
    /// Has events taken from now on.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start(&self, hub: &Arc<Hub>) -> Result<()> {
        let mut state = self.state.lock();
        state.armed = true;
        if state.running.is_some() {
            return Ok(());
        }
        let run = hub.clone();
        let started = thread::Builder::new().name("vmtree-events".to_owned()).spawn(move || run.pump());
        let thread = started.map_err(|error| {
            state.armed = false;
            Error::new(ErrorKind::Io, "watch events", "no thread could be started").caused_by(error)
        })?;
        state.running = Some(thread.thread().id());
        Ok(())
    }

    /// Has it end when the driver has no more events.
    pub fn stop(&self) {
        self.state.lock().armed = false;
    }

    /// Waits until it has ended, or for a second. The pump itself does not wait.
    pub fn wait(&self) {
        let late = Instant::now() + END;
        let mut state = self.state.lock();
        while state.running.is_some_and(|pump| pump != thread::current().id()) {
            if self.stopped.wait_until(&mut state, late).timed_out() {
                return;
            }
        }
    }

    /// Whether the thread is to end, which it then must.
    fn ends(&self, gone: bool) -> bool {
        let mut state = self.state.lock();
        if state.armed && !gone {
            return false;
        }
        state.running = None;
        self.stopped.notify_all();
        true
    }
}

impl Hub {
    fn pump(self: Arc<Self>) {
        let Ok(source) = self.source() else { return };
        let mut told = false;
        loop {
            match source.next(self.patience()) {
                Ok(Some(held)) => self.taken(held),
                Ok(None) if self.pump_state().ends(false) => return,
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::Gone => {
                    self.end(true);
                    self.pump_state().ends(true);
                    return;
                }
                Err(error) => {
                    if !told {
                        log::warn!("events are not told: {error}");
                        told = true;
                    }
                    if self.pump_state().ends(false) {
                        return;
                    }
                    thread::sleep(WAIT.min(self.patience()));
                }
            }
            self.time_out();
        }
    }

    /// How long to wait for an event: no longer than until one that is held times out.
    fn patience(&self) -> Duration {
        let deadline = self.deadline();
        deadline.map_or(WAIT, |deadline| deadline.saturating_duration_since(Instant::now()).min(WAIT))
    }

    fn source(&self) -> std::result::Result<&dyn EventSource, vmtree_api::Missing> {
        self.driver().events()
    }
}
