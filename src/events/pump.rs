//! The thread that takes events from the driver. It lives while something is armed or held.

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
        run(&mut state, hub)?;
        state.armed = true;
        Ok(())
    }

    /// Has what is held let go in time, also where nothing is armed.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn keep_time(&self, hub: &Arc<Hub>) -> Result<()> {
        run(&mut self.state.lock(), hub)
    }

    /// Has it end when the driver has no more events and none is held.
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
    fn ends(&self, needed: impl FnOnce(&State) -> bool) -> bool {
        let mut state = self.state.lock();
        if needed(&state) {
            return false;
        }
        state.running = None;
        self.stopped.notify_all();
        true
    }
}

/// Starts the thread if it does not run.
fn run(state: &mut State, hub: &Arc<Hub>) -> Result<()> {
    if state.running.is_some() {
        return Ok(());
    }
    let run = hub.clone();
    let started = thread::Builder::new().name("vmtree-events".to_owned()).spawn(move || run.pump());
    let thread = started.map_err(|error| {
        Error::new(ErrorKind::Io, "watch events", "no thread could be started").caused_by(error)
    })?;
    state.running = Some(thread.thread().id());
    Ok(())
}

impl Hub {
    fn pump(self: Arc<Self>) {
        let Ok(source) = self.source() else { return };
        let mut told = false;
        loop {
            // Known before the driver is asked: then it has nothing left that it raised while something was armed.
            let idle = !self.needs_pump(&self.pump_state().state.lock());
            match source.next(if idle { Duration::ZERO } else { self.patience() }) {
                Ok(Some(held)) => self.taken(held),
                Ok(None) if idle && self.pump_ends() => return,
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::Gone => {
                    self.end(true);
                    self.pump_state().ends(|_| false);
                    return;
                }
                Err(error) => {
                    if !told {
                        log::warn!("events are not told: {error}");
                        told = true;
                    }
                    if self.pump_ends() {
                        return;
                    }
                    thread::sleep(WAIT.min(self.patience()));
                }
            }
            self.time_out();
        }
    }

    fn pump_ends(&self) -> bool {
        self.pump_state().ends(|state| self.needs_pump(state))
    }

    /// Whether something is armed, or held: then its time may run out.
    fn needs_pump(&self, state: &State) -> bool {
        state.armed || self.deadline().is_some()
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
