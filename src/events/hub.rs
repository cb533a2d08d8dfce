//! The hub of one mount: everything between the driver's events and the open files.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use vmtree_api::events::{EventKind, EventOffer, Wanted};
use vmtree_api::{Cancel, Driver, Error, ErrorKind, VcpuId, ViewId};

use super::arm::{self, Arming};
use super::control::{Control, Controller, Waiting};
use super::file::EventFile;
use super::filter::{Filter, Format, Mode};
use super::pump::Pump;
use super::rules::{Rules, asked_lines};
use super::show::ViewNames;
use super::stats::Stats;
use super::stream::Stream;
use super::wake::wake;
use crate::error::{Errno, FsResult};
use crate::text::access::{AccessChange, AccessLine};

/// CLOCK_MONOTONIC in ns. The standard library does not tell its value.
pub type Clock = fn() -> u64;

/// How long opening a file to control waits for the release of one that it overlaps: close(2) returns before it.
const RELEASE: Duration = Duration::from_millis(100);
/// How often a wait looks whether its caller has gone.
const LOOK: Duration = Duration::from_millis(10);

/// The rules as those who must not wait for a driver see them.
#[derive(Default)]
pub(super) struct Shown {
    pub(super) rules: Arc<Rules>,
    /// Those that the driver is being told of.
    pub(super) coming: Option<Arc<Rules>>,
    /// Those of open event files.
    asked: Vec<AccessLine>,
}

/// The hub of one mount. [`Hub::end`] must be called before it is dropped.
pub struct Hub {
    driver: Arc<dyn Driver>,
    pub(super) reply_timeout: Duration,
    pub(super) clock: Clock,
    pub(super) names: Arc<dyn ViewNames>,
    pump: Pump,
    arming: Mutex<Arming>,
    pub(super) shown: RwLock<Shown>,
    ended: AtomicBool,
    files: AtomicU64,
    /// Told whenever a file no longer controls.
    released: Condvar,
    pub(super) control: Mutex<Control>,
    pub(super) stream: Mutex<Stream>,
    pub(super) stats: Stats,
}

impl Hub {
    /// A hub that lets a held vCPU go after `reply_timeout`. It has no thread until something is armed.
    #[must_use]
    pub fn new(
        driver: Arc<dyn Driver>,
        reply_timeout: Duration,
        clock: Clock,
        names: Arc<dyn ViewNames>,
    ) -> Arc<Self> {
        Arc::new(Self {
            driver,
            reply_timeout,
            clock,
            names,
            pump: Pump::default(),
            arming: Mutex::default(),
            shown: RwLock::default(),
            ended: AtomicBool::new(false),
            files: AtomicU64::new(0),
            released: Condvar::new(),
            control: Mutex::default(),
            stream: Mutex::default(),
            stats: Stats::default(),
        })
    }

    /// Opens an event file and arms what it is of. Posted.
    ///
    /// # Errors
    /// [`crate::error::FsError::NoEntry`] for a kind or vCPU that is not there, [`crate::error::FsError::Missing`] for a
    /// way that the driver lacks, [`ErrorKind::Busy`] where another file controls such an event,
    /// [`ErrorKind::Interrupted`] when `cancel` is raised, [`ErrorKind::Gone`] after the end, and those of
    /// [`vmtree_api::events::EventSource::watch`]. Then nothing is open nor armed.
    pub fn open(
        self: &Arc<Self>,
        filter: Filter,
        format: Format,
        mode: Mode,
        cancel: &Cancel,
    ) -> FsResult<EventFile> {
        self.driver.events()?;
        let kinds = arm::kinds(&filter, self.offers(), self.driver.facts().vcpus)?;
        self.alive()?;
        let file = match mode {
            Mode::Observe => EventFile::observe(self, filter, format, &kinds),
            Mode::Control => EventFile::control(self, self.reserve(filter, cancel)?, format),
        };
        // From here on a failure closes it again.
        file.arm()?;
        Ok(file)
    }

    /// Makes a controller, once no other overlaps it.
    fn reserve(&self, filter: Filter, cancel: &Cancel) -> FsResult<Arc<Controller>> {
        let late = Instant::now() + RELEASE;
        let mut control = self.control.lock();
        while control.overlaps(&filter) {
            if cancel.raised() {
                return Err(Error::new(ErrorKind::Interrupted, "open", "the caller has gone").into());
            }
            if Instant::now() >= late {
                let why = "another open file controls such events; one at a time can answer an event";
                return Err(Error::new(ErrorKind::Busy, "open", why).into());
            }
            self.released.wait_until(&mut control, late.min(Instant::now() + LOOK));
        }
        let id = self.files.fetch_add(1, Ordering::Relaxed);
        let file = Arc::new(Controller { id, filter, queue: Default::default() });
        control.add(file.clone());
        Ok(file)
    }

    /// The file `events/stats`: a line for each kind that the driver offers.
    #[must_use]
    pub fn stats(&self) -> String {
        self.stats.print(self.offers().iter().map(|offer| offer.kind))
    }

    /// The number of the event that a vCPU waits at.
    #[must_use]
    pub fn held(&self, vcpu: VcpuId) -> Option<u64> {
        self.control.lock().held(vcpu)
    }

    /// The rules in force on a view: those that were set in ascending order, then those of open event files.
    #[must_use]
    pub fn access(&self, view: ViewId) -> Vec<AccessLine> {
        let shown = self.shown.read();
        shown.rules.lines(view).chain(shown.asked.iter().cloned()).collect()
    }

    /// Changes a view's rules, all or nothing; later changes override earlier ones. Posted.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for rights that no hardware has, [`ErrorKind::NotFound`] for a view that is not there,
    /// [`crate::error::FsError::Missing`] where the driver has no slat events or can't deny them, and those of
    /// [`vmtree_api::events::EventSource::watch`].
    pub fn set_access(self: &Arc<Self>, view: ViewId, changes: &[AccessChange]) -> FsResult<()> {
        self.driver.events()?;
        let deny = changes.iter().any(|change| matches!(change, AccessChange::Set { deny: true, .. }));
        arm::rules_offered(self.offers(), deny)?;
        let mut arming = self.arming.lock();
        self.alive()?;
        if !arming.views.contains(&view) {
            return Err(Error::new(ErrorKind::NotFound, "set access", "the view is not there").into());
        }
        let mut rules = Rules::clone(&arming.rules);
        rules.change(view, changes)?;
        self.set_rules(&mut arming, rules)
    }

    /// Makes a view, which gets the rules of open event files. Posted.
    ///
    /// # Errors
    /// Those of [`vmtree_api::views::Views::create`] and [`vmtree_api::events::EventSource::watch`]; then there is none.
    pub fn make_view(self: &Arc<Self>) -> FsResult<ViewId> {
        let views = self.driver.views()?;
        let mut arming = self.arming.lock();
        self.alive()?;
        let view = views.create()?;
        arming.views.insert(view);
        if let Err(error) = self.rearm(&mut arming) {
            arming.views.remove(&view);
            views.destroy(view)?;
            return Err(error);
        }
        Ok(view)
    }

    /// Removes a view with its rules. Posted.
    ///
    /// # Errors
    /// Those of [`vmtree_api::views::Views::destroy`]; then it is still there.
    pub fn remove_view(self: &Arc<Self>, view: ViewId) -> FsResult<()> {
        let views = self.driver.views()?;
        let mut arming = self.arming.lock();
        views.destroy(view)?;
        arming.views.remove(&view);
        let mut rules = Rules::clone(&arming.rules);
        rules.forget(view);
        if let Err(error) = self.set_rules(&mut arming, rules.clone()) {
            // The view is gone, and its rules with it, whatever the driver says to what is left. A new view of its number
            // gets them anew.
            log::warn!("the rules of a removed view: {error}");
            arming.armed.rules.retain(|rule| rule.view != view);
            arming.rules = Arc::new(rules);
            self.shown.write().rules = arming.rules.clone();
        }
        Ok(())
    }

    /// Ends all: the unmount, or the VM's death (`gone`). Lets every held vCPU go, ends every read, disarms. May be called
    /// more than once. It may wait for the driver unless the VM is gone.
    pub fn end(self: &Arc<Self>, gone: bool) {
        self.ended.store(true, Ordering::SeqCst);
        let mut wakers = Vec::new();
        let (waiting, files) = self.control.lock().end();
        waiting.into_iter().for_each(Waiting::let_go);
        files.iter().for_each(|file| file.queue.end(&mut wakers));
        self.stream.lock().end(&mut wakers);
        wake(wakers);
        self.released.notify_all();
        if gone {
            self.pump.stop();
            return;
        }
        self.disarm_all();
        self.pump.wait();
    }
}

/// Arming.
impl Hub {
    /// Disarms all, for the end. It tries twice: there is nobody after it who would.
    fn disarm_all(self: &Arc<Self>) {
        let mut arming = self.arming.lock();
        for _ in 0..2 {
            match self.rearm(&mut arming) {
                Err(error) if error.errno() != Errno::ENODEV => {
                    log::warn!("events could not be disarmed: {error}");
                }
                _ => return,
            }
        }
    }

    /// Arms what a file is of.
    pub(super) fn arm(self: &Arc<Self>, filter: &Filter, mode: Mode) -> FsResult<()> {
        let mut arming = self.arming.lock();
        let first = arming.add(filter, mode);
        let armed = self.alive().and_then(|()| if first { self.rearm(&mut arming) } else { Ok(()) });
        if armed.is_err() {
            arming.remove(filter, mode);
        }
        armed
    }

    /// Disarms what only this file was of.
    pub(super) fn disarm(self: &Arc<Self>, filter: &Filter, mode: Mode) {
        let mut arming = self.arming.lock();
        if arming.remove(filter, mode)
            && let Err(error) = self.rearm(&mut arming)
            && !self.ended.load(Ordering::SeqCst)
        {
            log::warn!("events could not be disarmed: {error}");
        }
    }

    fn set_rules(self: &Arc<Self>, arming: &mut Arming, rules: Rules) -> FsResult<()> {
        let rules = Arc::new(rules);
        // A wall that comes is there before the driver raises its first event, and one that goes until the last.
        self.shown.write().coming = Some(rules.clone());
        let before = std::mem::replace(&mut arming.rules, rules);
        let armed = self.rearm(arming);
        if armed.is_err() {
            arming.rules = before;
        }
        let mut shown = self.shown.write();
        shown.rules = arming.rules.clone();
        shown.coming = None;
        armed
    }

    /// Tells the driver what is wanted, where that has changed.
    fn rearm(self: &Arc<Self>, arming: &mut Arming) -> FsResult<()> {
        let ended = self.ended.load(Ordering::SeqCst);
        let wanted = if ended { Wanted::default() } else { arming.wanted(self.offers()) };
        if wanted != arming.armed {
            let source = self.driver.events()?;
            if wanted != Wanted::default() {
                self.pump.start(self)?;
            }
            let told = source.watch(&wanted);
            if told.is_ok() {
                arming.armed = wanted;
            }
            if arming.armed == Wanted::default() {
                self.pump.stop();
            }
            told?;
        }
        for kind in EventKind::ALL {
            let watches = arming.armed.watches.iter().filter(|watch| watch.kind == *kind).count();
            let rules = if *kind == EventKind::Slat { arming.armed.rules.len() } else { 0 };
            self.stats.of(*kind).armed.set((watches + rules) as u64);
        }
        self.shown.write().asked = asked_lines(&arming.asked(self.offers()));
        Ok(())
    }

    pub(super) fn alive(&self) -> FsResult<()> {
        if self.ended.load(Ordering::SeqCst) {
            return Err(
                Error::new(ErrorKind::Gone, "watch events", "the VM is gone, or the mount ends").into()
            );
        }
        Ok(())
    }

    pub(super) fn offers(&self) -> &[EventOffer] {
        self.driver.events().map_or(&[], |source| source.offers())
    }

    pub(super) fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    pub(super) fn pump_state(&self) -> &Pump {
        &self.pump
    }

    pub(super) fn released(&self) {
        self.released.notify_all();
    }
}
