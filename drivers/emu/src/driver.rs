//! The driver: what `vmtree` sees of a machine.

use std::sync::Arc;

use vmtree_api::events::{EventSource, Injection};
use vmtree_api::views::Views;
use vmtree_api::{Arch, Driver, Error, Execution, Facts, Host, Memory, Missing, Registers};

use crate::events::Events;
use crate::execution::Control;
use crate::injection::Injector;
use crate::machine::{Machine, Running};
use crate::options::Options;
use crate::ram::Ram;
use crate::registers::Access;
use crate::views::AllViews;
use crate::{loader, start};

/// An open machine.
pub struct Emu {
    facts: Facts,
    ram: Arc<Ram>,
    registers: Access,
    control: Control,
    events: Events,
    views: AllViews,
    injection: Injector,
    // Dropping it ends the machine's thread.
    _running: Running,
}

impl Emu {
    /// Makes the machine, loads the image and starts it.
    ///
    /// # Errors
    /// As [`crate::open`].
    pub fn open(options: Options, host: Arc<dyn Host>) -> vmtree_api::Result<Self> {
        let (data, image) = match &options.image {
            Some(path) => (loader::read(path)?, path.display().to_string()),
            None => (vmtree_guest::elf(), "the built-in guest".to_owned()),
        };
        let named = |error: Error| Error::new(error.kind(), error.op(), format!("{image}: {}", error.why()));
        let parsed = loader::parse(&data).map_err(named)?;
        let ram = Arc::new(Ram::new(options.ram)?);
        loader::load(&parsed, &data, &ram).map_err(named)?;
        start::tables(&ram);
        let vcpus = (0..options.vcpus).map(|id| start::vcpu(id, options.vcpus, parsed.entry)).collect();
        let running = Running::start(Arc::new(Machine::new(vcpus, ram.clone(), options.seed, host)))?;
        let facts = Facts {
            driver: "emu",
            name: None,
            arch: Arch::X86_64,
            vcpus: Some(options.vcpus),
            extra: vec![("image", image), ("seed", options.seed.to_string())],
        };
        let machine = running.machine().clone();
        let registers = Access::new(machine.clone());
        let events = Events::new(machine.clone());
        let (views, injection) = (AllViews(machine.clone()), Injector(machine.clone()));
        let control = Control(machine);
        Ok(Self { facts, ram, registers, control, events, views, injection, _running: running })
    }
}

impl Driver for Emu {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn memory(&self) -> &dyn Memory {
        &*self.ram
    }

    fn registers(&self) -> Result<&dyn Registers, Missing> {
        Ok(&self.registers)
    }

    fn execution(&self) -> Result<&dyn Execution, Missing> {
        Ok(&self.control)
    }

    fn events(&self) -> Result<&dyn EventSource, Missing> {
        Ok(&self.events)
    }

    fn views(&self) -> Result<&dyn Views, Missing> {
        Ok(&self.views)
    }

    fn injection(&self) -> Result<&dyn Injection, Missing> {
        Ok(&self.injection)
    }
}
