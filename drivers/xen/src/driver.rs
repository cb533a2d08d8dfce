//! The driver: a domain, opened by Xen's own calls or by whatever acts like them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};

use vmtree_api::events::{EventSource, Injection};
use vmtree_api::undo::Undo;
use vmtree_api::views::Views;
use vmtree_api::{
    Arch, Driver, Error, ErrorKind, Execution, Facts, Host, Memory, Missing, Registers, Result,
};

use crate::error::refused;
use crate::events::offers::{self, Can};
use crate::events::queue::Queue;
use crate::events::source::Events;
use crate::execution::Vm;
use crate::hypervisor::{DomainInfo, Frames, Hypervisor};
use crate::injection::Injector;
use crate::memory::DomainMemory;
use crate::owner::Owner;
use crate::registers::Access;
use crate::views::DomainViews;
use crate::world::{Shared, World};

const OP: &str = "open xen";
/// How much of the domain's memory is kept mapped, unless told otherwise.
pub const BUDGET: u64 = 256 << 20;

/// A domain to be opened, and the ways to it.
pub struct Opening {
    /// Its number.
    pub domid: u32,
    /// Its name, where xenstore has one.
    pub name: Option<String>,
    /// The version of Xen.
    pub version: Option<String>,
    /// How many bytes of memory are kept mapped.
    pub budget: u64,
    /// Whether a ring that somebody has is taken from him.
    pub take_ring: bool,
    /// Its memory.
    pub frames: Arc<dyn Frames>,
    /// Opens the rest, on the thread that it stays on.
    pub open: Box<dyn FnOnce() -> io::Result<Box<dyn Hypervisor>> + Send>,
}

struct Xen {
    facts: Facts,
    memory: Arc<DomainMemory>,
    registers: Access,
    execution: Vm,
    events: Events,
    views: Option<DomainViews>,
    injection: Injector,
}

/// Opens a domain.
///
/// # Errors
/// [`ErrorKind::Gone`] if it is not there, [`ErrorKind::Denied`] if Xen is not for this user, [`ErrorKind::Unsupported`]
/// for what is no x86 guest with hardware virtualization.
pub fn open_domain(opening: Opening, host: Arc<dyn Host>) -> Result<Box<dyn Driver>> {
    let Opening { domid, name, version, budget, take_ring, frames, open } = opening;
    let undo = Undo::new(Arc::clone(&host));
    let memory = Arc::new(DomainMemory::new(frames, budget));
    let shared = Arc::new(Shared { ended: AtomicBool::new(false), host, memory: Arc::clone(&memory) });
    let owner = Owner::start(open, move |xen| World::new(xen, undo, shared))?;
    let Found { info, highest, can, queue, current } = owner.ask(OP, |world| {
        let highest = world.xen.highest();
        let highest =
            highest.map_err(|error| refused(OP, "Xen does not tell of the domain's memory", error))?;
        let events = world.xen.events().unwrap_or(0);
        let can = Can { events, rights: world.xen.rights().is_ok(), views: world.views.can };
        let (queue, current) = (Arc::clone(&world.events.queue), Arc::clone(&world.views.current));
        Ok(Found { info: world.info, highest, can, queue, current })
    })?;
    if !info.hvm {
        let why = format!("domain {domid} is a PV guest; HVM and PVH guests can be opened");
        return Err(Error::new(ErrorKind::Unsupported, OP, why));
    }
    if take_ring {
        owner.ask(OP, World::free_ring)?;
    }
    memory.refresh(highest, &info)?;
    let facts = facts(&info, name, version);
    let ours = || Arc::clone(&owner);
    Ok(Box::new(Xen {
        events: Events::new(ours(), queue, offers::all(can)),
        views: can.views.then(|| DomainViews::new(ours(), Arc::clone(&memory), current)),
        injection: Injector(ours()),
        registers: Access::new(ours()),
        execution: Vm(owner),
        facts,
        memory,
    }))
}

/// What the owner thread tells of a domain.
struct Found {
    info: DomainInfo,
    highest: u64,
    can: Can,
    queue: Arc<Queue>,
    current: Arc<[AtomicU32]>,
}

fn facts(info: &DomainInfo, name: Option<String>, version: Option<String>) -> Facts {
    let mut extra = vec![("domid", info.domid.to_string())];
    extra.extend(version.map(|version| ("xen", version)));
    // PVH guests have the local APIC alone of all the devices that Xen can play.
    let kind = if info.devices & !1 == 0 { "pvh" } else { "hvm" };
    extra.push(("guest", kind.to_owned()));
    Facts { driver: "xen", name, arch: Arch::X86_64, vcpus: Some(info.vcpus), extra }
}

impl Driver for Xen {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn memory(&self) -> &dyn Memory {
        &*self.memory
    }

    fn registers(&self) -> std::result::Result<&dyn Registers, Missing> {
        Ok(&self.registers)
    }

    fn execution(&self) -> std::result::Result<&dyn Execution, Missing> {
        Ok(&self.execution)
    }

    fn events(&self) -> std::result::Result<&dyn EventSource, Missing> {
        Ok(&self.events)
    }

    fn views(&self) -> std::result::Result<&dyn Views, Missing> {
        self.views.as_ref().map(|views| views as &dyn Views).ok_or_else(offers::no_views)
    }

    fn injection(&self) -> std::result::Result<&dyn Injection, Missing> {
        Ok(&self.injection)
    }
}
