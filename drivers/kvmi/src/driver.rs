//! The driver: a connection, and what its host was found to have.

use std::sync::Arc;

use parking_lot::Mutex;
use vmtree_api::events::{EventSource, Injection};
use vmtree_api::views::Views;
use vmtree_api::{Arch, Driver, Execution, Facts, Host, Memory, MemoryMap, Missing, Registers, Result};

use crate::core::{Core, Current};
use crate::events::Source;
use crate::failure;
use crate::hello::{self, Hello};
use crate::memory::{self, GuestMemory};
use crate::offers::{self, Has};
use crate::owner::Owner;
use crate::port::{Answer, Port, Refusal, Wake, errno, kind};
use crate::queue::Queue;
use crate::table;
use crate::vm::{Access, AllViews, Control};

const OP: &str = "open kvmi";

/// Makes a connection on the owner thread, and tells what QEMU said first.
pub type Connect = Box<dyn FnOnce() -> Result<(Box<dyn Port>, Hello)> + Send>;

/// What was found at the other end.
struct Found {
    hello: Hello,
    vcpus: u32,
    map: Arc<MemoryMap>,
    msrs: Vec<u32>,
    xcr0: bool,
    has: Has,
    current: Current,
}

/// An open VM.
pub struct Kvmi {
    facts: Facts,
    memory: GuestMemory,
    registers: Access,
    control: Control,
    events: Source,
    views: std::result::Result<AllViews, Missing>,
    /// Dropped last: it lets the VM go.
    _owner: Owner,
}

fn lacks(what: &str, refusal: &Refusal) -> Missing {
    match refusal {
        Refusal::Errno(errno::EPERM) => Missing::new(format!("this host does not allow {what}"))
            .cure("allow it at QEMU's -object introspection"),
        _ => Missing::new(format!("this host's KVM-VMI has no {what}")),
    }
}

/// What an answer says of a capability; the end of the connection is an error.
fn there(what: &str, answer: Answer<()>) -> Answer<std::result::Result<(), Missing>> {
    match answer {
        Err(refusal @ Refusal::Gone(_)) => Err(refusal),
        answer => Ok(answer.map_err(|refusal| lacks(what, &refusal))),
    }
}

/// Which capabilities the host has.
fn capabilities(port: &mut dyn Port) -> Answer<Has> {
    let kinds = [
        (kind::CR, "control register events"),
        (kind::MSR, "MSR events"),
        (kind::BREAKPOINT, "breakpoint events"),
        (kind::PF, "page fault events"),
        (kind::DESCRIPTOR, "descriptor events"),
        (kind::CPUID, "CPUID events"),
    ];
    let mut events = Vec::new();
    for (number, what) in kinds {
        let answer = port.has_event(number);
        events.push((number, there(what, answer)?));
    }
    let step = port.has_step();
    let step = there("single-step", step)?;
    let views = port.has_views();
    Ok(Has { events, step, views: there("EPT views", views)? })
}

/// The MSRs that the host gives. It refuses all where one is not there.
fn msrs(port: &mut dyn Port) -> Answer<Vec<u32>> {
    let all: Vec<u32> = table::msrs().collect();
    match port.registers(0, &all) {
        Ok(_) => return Ok(all),
        Err(Refusal::Errno(_)) => {}
        Err(gone) => return Err(gone),
    }
    let mut some = Vec::new();
    for index in all {
        match port.registers(0, &[index]) {
            Ok(_) => some.push(index),
            Err(Refusal::Errno(_)) => {}
            Err(gone) => return Err(gone),
        }
    }
    Ok(some)
}

fn explore(port: &mut dyn Port, hello: Hello) -> Answer<Found> {
    let vcpus = port.vcpus()?;
    if !(1..=4096).contains(&vcpus) {
        return Err(Refusal::Gone(format!("the hypervisor tells of {vcpus} vCPUs, which no VM has")));
    }
    let map = Arc::new(memory::look(port)?);
    let msrs = msrs(port)?;
    let xcr0 = match port.xcr0(0) {
        Ok(_) => true,
        Err(Refusal::Errno(_)) => false,
        Err(gone) => return Err(gone),
    };
    let has = capabilities(port)?;
    // Without it, QEMU stops or moves the VM all the same.
    if let Err(gone @ Refusal::Gone(_)) = port.tell_unhook() {
        return Err(gone);
    }
    Ok(Found { hello, vcpus, map, msrs, xcr0, has, current: Current::default() })
}

impl Kvmi {
    /// Connects, and looks at what there is.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn open(connect: Connect, wake: Arc<dyn Wake>, host: Arc<dyn Host>) -> Result<Self> {
        let queue = Arc::new(Queue::default());
        let slot = Arc::new(Mutex::new(None));
        let (found, events) = (Arc::clone(&slot), Arc::clone(&queue));
        let make = move || {
            let (mut port, hello) = connect()?;
            let explored = explore(&mut *port, hello).map_err(|refusal| failure::error(OP, &refusal));
            let explored = explored.inspect_err(|_| port.close())?;
            let core = Core::new(port, explored.vcpus, Arc::clone(&explored.map), events);
            *found.lock() = Some(Found { current: Arc::clone(core.current()), ..explored });
            Ok(core)
        };
        let owner = Owner::start(Box::new(make), wake, Arc::clone(&queue), host)?;
        let found = slot.lock().take();
        let found = found.ok_or_else(|| {
            vmtree_api::Error::new(vmtree_api::ErrorKind::Io, OP, "the connection ended at once")
        })?;
        Ok(Self::of(owner, queue, found))
    }

    fn of(owner: Owner, queue: Arc<Queue>, found: Found) -> Self {
        let handle = owner.handle();
        let mut extra = vec![("uuid", hello::uuid(&found.hello.uuid))];
        if found.hello.started > 0 {
            extra.push(("started", found.hello.started.to_string()));
        }
        let facts = Facts {
            driver: "kvmi",
            name: found.hello.name.clone(),
            arch: Arch::X86_64,
            vcpus: Some(found.vcpus),
            extra,
        };
        Self {
            facts,
            memory: GuestMemory::new(handle.clone(), found.map),
            registers: Access::new(handle.clone(), found.msrs, found.xcr0),
            control: Control(handle.clone()),
            events: Source::new(handle.clone(), queue, offers::offers(&found.has)),
            views: found.has.views.map(|()| AllViews::new(handle.clone(), found.current)),
            _owner: owner,
        }
    }
}

impl Driver for Kvmi {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn memory(&self) -> &dyn Memory {
        &self.memory
    }

    fn registers(&self) -> std::result::Result<&dyn Registers, Missing> {
        Ok(&self.registers)
    }

    fn execution(&self) -> std::result::Result<&dyn Execution, Missing> {
        Ok(&self.control)
    }

    fn events(&self) -> std::result::Result<&dyn EventSource, Missing> {
        Ok(&self.events)
    }

    fn views(&self) -> std::result::Result<&dyn Views, Missing> {
        self.views.as_ref().map(|views| views as &dyn Views).map_err(Clone::clone)
    }

    fn injection(&self) -> std::result::Result<&dyn Injection, Missing> {
        Err(Missing::new("KVMI injects exceptions alone, no interrupts and NMIs")
            .cure("answer a held event with 'SEQ inject ...' for an exception"))
    }
}
