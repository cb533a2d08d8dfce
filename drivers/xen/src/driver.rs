//! The driver: a domain, opened by Xen's own calls or by whatever acts like them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use vmtree_api::events::{EventSource, Injection};
use vmtree_api::undo::Undo;
use vmtree_api::views::Views;
use vmtree_api::{
    Arch, Driver, Error, ErrorKind, Execution, Facts, Host, Memory, Missing, Registers, Result,
};

use crate::error::refused;
use crate::execution::Vm;
use crate::hypervisor::{DomainInfo, Frames, Hypervisor};
use crate::memory::DomainMemory;
use crate::owner::Owner;
use crate::registers::Access;
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
}

/// Opens a domain.
///
/// # Errors
/// [`ErrorKind::Gone`] if it is not there, [`ErrorKind::Denied`] if Xen is not for this user, [`ErrorKind::Unsupported`]
/// for what is no x86 guest with hardware virtualization.
pub fn open_domain(opening: Opening, host: Arc<dyn Host>) -> Result<Box<dyn Driver>> {
    let Opening { domid, name, version, budget, frames, open } = opening;
    let undo = Undo::new(Arc::clone(&host));
    let memory = Arc::new(DomainMemory::new(frames, budget));
    let shared = Arc::new(Shared { ended: AtomicBool::new(false), host, memory: Arc::clone(&memory) });
    let owner = Owner::start(open, move |xen| World::new(xen, undo, shared))?;
    let (info, highest) = owner.ask(OP, |world| {
        let highest = world.xen.highest();
        let highest =
            highest.map_err(|error| refused(OP, "Xen does not tell of the domain's memory", error))?;
        Ok((world.info, highest))
    })?;
    if !info.hvm {
        let why = format!("domain {domid} is a PV guest; HVM and PVH guests can be opened");
        return Err(Error::new(ErrorKind::Unsupported, OP, why));
    }
    memory.refresh(highest, &info)?;
    let facts = facts(&info, name, version);
    let (registers, execution) = (Access::new(Arc::clone(&owner)), Vm(owner));
    Ok(Box::new(Xen { facts, memory, registers, execution }))
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
        Err(Missing::new("events of Xen are not taken yet"))
    }

    fn views(&self) -> std::result::Result<&dyn Views, Missing> {
        Err(Missing::new("views of Xen are not made yet"))
    }

    fn injection(&self) -> std::result::Result<&dyn Injection, Missing> {
        Err(Missing::new("nothing is injected yet"))
    }
}
