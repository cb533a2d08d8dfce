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

use crate::error::{is, number, refused};
use crate::events::offers::{self, Can};
use crate::events::queue::Queue;
use crate::events::source::Events;
use crate::execution::Vm;
use crate::hypervisor::{DomainInfo, Frames, Hypervisor};
use crate::injection::Injector;
use crate::memory::DomainMemory;
use crate::owner::Owner;
use crate::pv::memory::PvMemory;
use crate::pv::{self, Pv, lacks};
use crate::registers::Access;
use crate::views::DomainViews;
use crate::world::{Shared, World};

const OP: &str = "open xen";
/// The bytes of a word of a 64-bit guest.
const WIDE: u32 = 8;
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
    /// Its memory; the machine's frames of a PV domain.
    pub frames: Arc<dyn Frames>,
    /// What a PV domain has beside that; `None` of others.
    pub pv: Option<Pv>,
    /// Opens the rest, on the thread that it stays on.
    pub open: Box<dyn FnOnce() -> io::Result<Box<dyn Hypervisor>> + Send>,
}

struct Xen {
    facts: Facts,
    memory: Arc<dyn Memory>,
    registers: Box<dyn Registers>,
    execution: Vm,
    events: std::result::Result<Events, Missing>,
    views: std::result::Result<DomainViews, Missing>,
    injection: std::result::Result<Injector, Missing>,
}

/// Opens a domain.
///
/// # Errors
/// [`ErrorKind::Gone`] if it is not there, [`ErrorKind::Denied`] if Xen is not for this user, [`ErrorKind::Unsupported`]
/// for a 32-bit PV guest, [`ErrorKind::Busy`] for a PV guest whose kernel is still starting.
pub fn open_domain(opening: Opening, host: Arc<dyn Host>) -> Result<Box<dyn Driver>> {
    let Opening { domid, name, version, budget, take_ring, frames, pv, open } = opening;
    let undo = Undo::new(Arc::clone(&host));
    let paravirtual = pv.is_some();
    let memory = Arc::new(match pv {
        Some(pv) => DomainMemory::paravirtual(frames, pv, budget),
        None => DomainMemory::new(frames, budget),
    });
    let shared = Arc::new(Shared { ended: AtomicBool::new(false), host, memory: Arc::clone(&memory) });
    let owner = Owner::start(open, move |xen| World::new(xen, undo, shared))?;
    let Found { info, highest, can, queue, current, width } = owner.ask(OP, find)?;
    if paravirtual && width != WIDE {
        let why = format!("domain {domid} is a 32-bit PV guest; of PV guests those of 64 bits can be opened");
        return Err(Error::new(ErrorKind::Unsupported, OP, why));
    }
    if take_ring && !paravirtual {
        owner.ask(OP, World::free_ring)?;
    }
    memory.refresh(highest, &info)?;
    let facts = facts(&info, name, version);
    let ours = || Arc::clone(&owner);
    if paravirtual {
        return Ok(Box::new(Xen {
            events: Err(pv::missing(lacks::EVENTS)),
            views: Err(pv::missing(lacks::VIEWS)),
            injection: Err(pv::missing(lacks::INJECTION)),
            registers: Box::new(pv::registers::Access::new(ours())),
            memory: Arc::new(PvMemory::new(memory, ours())),
            execution: Vm { owner, steps: Err(pv::missing(lacks::STEPS)) },
            facts,
        }));
    }
    let views = || DomainViews::new(ours(), Arc::clone(&memory), current);
    Ok(Box::new(Xen {
        events: Ok(Events::new(ours(), queue, offers::all(can))),
        views: if can.views { Ok(views()) } else { Err(offers::no_views()) },
        injection: Ok(Injector(ours())),
        registers: Box::new(Access::new(ours())),
        execution: Vm { owner, steps: offers::steps(can) },
        facts,
        memory,
    }))
}

fn find(world: &mut World) -> Result<Found> {
    let told = |error| refused(OP, "Xen does not tell of the domain's memory", error);
    let highest = world.highest().map_err(told)?;
    let width = if world.info.hvm { WIDE } else { world.xen.width().map_err(told)? };
    let events = world.xen.events().unwrap_or(0);
    world.alone = world.info.vcpus == 1 || pauses_one(&*world.xen);
    let alone = world.alone;
    world.steps = offers::has_steps(events);
    let can = Can { events, rights: world.xen.rights().is_ok(), views: world.views.can, alone };
    let (queue, current) = (Arc::clone(&world.events.queue), Arc::clone(&world.views.current));
    Ok(Found { info: world.info, highest, can, queue, current, width })
}

/// Whether this Xen can pause one vCPU: asked while the domain runs, when it must not.
fn pauses_one(xen: &dyn Hypervisor) -> bool {
    match xen.pause_vcpu(0) {
        Err(error) => is(&error, number::EBUSY),
        // Somebody else has paused the domain.
        Ok(()) => xen.unpause_vcpu(0).is_ok(),
    }
}

/// What the owner thread tells of a domain.
struct Found {
    info: DomainInfo,
    highest: u64,
    can: Can,
    queue: Arc<Queue>,
    current: Arc<[AtomicU32]>,
    width: u32,
}

fn facts(info: &DomainInfo, name: Option<String>, version: Option<String>) -> Facts {
    let mut extra = vec![("domid", info.domid.to_string())];
    extra.extend(version.map(|version| ("xen", version)));
    // PVH guests have the local APIC alone of all the devices that Xen can play.
    let kind = match (info.hvm, info.devices & !1) {
        (false, _) => "pv",
        (true, 0) => "pvh",
        (true, _) => "hvm",
    };
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
        Ok(&*self.registers)
    }

    fn execution(&self) -> std::result::Result<&dyn Execution, Missing> {
        Ok(&self.execution)
    }

    fn events(&self) -> std::result::Result<&dyn EventSource, Missing> {
        self.events.as_ref().map(|events| events as &dyn EventSource).map_err(Missing::clone)
    }

    fn views(&self) -> std::result::Result<&dyn Views, Missing> {
        self.views.as_ref().map(|views| views as &dyn Views).map_err(Missing::clone)
    }

    fn injection(&self) -> std::result::Result<&dyn Injection, Missing> {
        self.injection.as_ref().map(|injection| injection as &dyn Injection).map_err(Missing::clone)
    }
}
