//! The one plugin in a QEMU: what is wanted of it, and what it knows.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use vmtree_agent::server::{Agent, Machine, Refusal};
use vmtree_agent::{Code, Event, Hello, Kind, Verdict, Wanted, Watch, Way};

use crate::act::Faults;
use crate::armed::{Armed, Baked};
use crate::flush::Flush;
use crate::listen::Listener;
use crate::sys::{Info, has, outs, version};
use crate::tracked::Tracked;
use crate::{act, args, offers, sys};

static PLUGIN: OnceLock<Arc<Plugin>> = OnceLock::new();

/// The plugin, once QEMU has installed it.
pub fn plugin() -> Option<&'static Arc<Plugin>> {
    PLUGIN.get()
}

/// What is wanted and what is known.
pub struct Plugin {
    pub id: u64,
    pub agent: Arc<Agent>,
    pub flush: Flush,
    pub faults: Faults,
    pub listener: Listener,
    armed: RwLock<Arc<Armed>>,
    baked: RwLock<Arc<Baked>>,
    /// The kinds that are wanted, a bit each.
    kinds: AtomicU32,
    tracked: Box<[Mutex<Tracked>]>,
    started: AtomicBool,
}

/// The most vCPUs that are watched.
const VCPUS: u32 = 4096;

/// The agent's view of it.
struct Monitor {
    name: String,
    vcpus: u32,
}

/// Loads the plugin: its socket is there from now on, and is served once the first vCPU starts.
///
/// # Errors
/// A sentence with the cure; QEMU then does not start.
pub fn install(info: &Info) -> Result<(), String> {
    if !info.system || info.target != "x86_64" {
        return Err(format!("it serves qemu-system-x86_64 alone, and this is for {}", info.target));
    }
    if !has::registers() {
        return Err(format!(
            "this QEMU's plugin interface has version {}, which shows no registers: use QEMU 10.0 or later",
            info.newest
        ));
    }
    let listener = Listener::bind(args::socket(&info.args)?)?;
    let vcpus = info.max_vcpus.clamp(1, VCPUS);
    let name = format!("QEMU's plugin interface, version {}", version());
    outs(&format!("vmtree: agent at {} with {name}\n", listener.path()));
    let plugin = Plugin {
        id: info.id,
        agent: Agent::new(Arc::new(Monitor { name, vcpus })),
        flush: Flush::new(vcpus),
        faults: Faults::default(),
        listener,
        armed: RwLock::default(),
        baked: RwLock::default(),
        kinds: AtomicU32::new(0),
        tracked: (0..vcpus).map(|_| Mutex::default()).collect(),
        started: AtomicBool::new(false),
    };
    PLUGIN.set(Arc::new(plugin)).map_err(|_| "it is loaded already: once is enough".to_owned())?;
    sys::register(info.id);
    Ok(())
}

impl Plugin {
    /// Whether events of a kind are wanted at all.
    pub fn wants(&self, kind: Kind) -> bool {
        self.kinds.load(Ordering::Relaxed) >> kind as u32 & 1 == 1
    }

    /// What is wanted.
    pub fn armed(&self) -> Arc<Armed> {
        self.armed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What has to be in the translation.
    pub fn baked(&self) -> Arc<Baked> {
        self.baked.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is known of a vCPU.
    pub fn tracked<T>(&self, vcpu: u32, with: impl FnOnce(&mut Tracked) -> T) -> Option<T> {
        let tracked = self.tracked.get(vcpu as usize)?;
        Some(with(&mut tracked.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Serves the socket from now on. When the first vCPU starts: QEMU may fork before that.
    pub fn start(self: &Arc<Self>) {
        if !self.started.swap(true, Ordering::SeqCst) {
            self.listener.serve(&self.agent);
        }
    }

    /// What was wanted and translated before.
    fn replace(&self, armed: Armed) -> (Arc<Armed>, Arc<Baked>) {
        let baked = armed.baked();
        // Wide first, so that nothing that both want is missed between.
        self.kinds.fetch_or(armed.kinds(), Ordering::SeqCst);
        let kinds = armed.kinds();
        let before = std::mem::replace(
            &mut *self.armed.write().unwrap_or_else(PoisonError::into_inner),
            Arc::new(armed),
        );
        self.kinds.store(kinds, Ordering::SeqCst);
        let baked = std::mem::replace(
            &mut *self.baked.write().unwrap_or_else(PoisonError::into_inner),
            Arc::new(baked),
        );
        (before, baked)
    }

    fn arm(&self, wanted: &Wanted) -> Result<(), Refusal> {
        let (before, translated) = self.replace(Armed::new(wanted));
        if *translated == *self.baked() {
            return Ok(());
        }
        // What is no longer wanted is told no more from now on, and costs until a vCPU comes by.
        if translated.covers(&self.baked()) {
            self.flush.ask();
            return Ok(());
        }
        if self.flush.wait() {
            return Ok(());
        }
        let before = Arc::try_unwrap(before).unwrap_or_else(|shared| Armed::clone(&shared));
        self.replace(before);
        Err(Refusal::new(
            Code::TimedOut,
            "no vCPU took an interrupt in 3 seconds, so QEMU could not translate anew: pause and resume the VM",
        ))
    }
}

fn offered(watch: &Watch) -> Result<(), Refusal> {
    let ways = watch.way.map_or_else(|| offers::ways(watch.kind).to_vec(), |way| vec![way]);
    let seen = ways
        .iter()
        .any(|way| offers::ways(watch.kind).contains(way) && offers::seen(watch.kind, *way).is_ok());
    let why =
        ways.iter().find_map(|way| offers::seen(watch.kind, *way).err()).unwrap_or("there is no such event");
    if seen { Ok(()) } else { Err(Refusal::new(Code::Unsupported, why)) }
}

impl Machine for Monitor {
    fn hello(&self) -> Hello {
        Hello { name: self.name.clone(), vcpus: self.vcpus, offers: offers::rows() }
    }

    fn arm(&self, wanted: &Wanted) -> Result<(), Refusal> {
        wanted.watches.iter().try_for_each(offered)?;
        if wanted.rules.iter().any(|rule| rule.access & 4 == 0) {
            offers::seen(Kind::Slat, Way::Execute).map_err(|why| Refusal::new(Code::Unsupported, why))?;
        }
        plugin().map_or(Ok(()), |plugin| plugin.arm(wanted))
    }

    fn holds(&self, event: &Event) -> bool {
        plugin().is_some_and(|plugin| plugin.armed().matches(event) == Some(true))
    }

    fn check(&self, event: &Event, verdict: &Verdict) -> Result<(), Refusal> {
        act::check(event, verdict)
    }
}
