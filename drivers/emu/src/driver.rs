//! The driver: what `vmtree` sees of a machine.

use std::sync::Arc;

use vmtree_api::events::{EventSource, Injection};
use vmtree_api::views::Views;
use vmtree_api::{Arch, Driver, Execution, Facts, Host, Memory, Missing, Registers};

use crate::options::Options;
use crate::ram::Ram;

/// An open machine.
pub struct Emu {
    facts: Facts,
    ram: Arc<Ram>,
}

impl Emu {
    /// Makes the machine and starts it.
    ///
    /// # Errors
    /// As [`crate::open`].
    pub fn open(options: Options, host: Arc<dyn Host>) -> vmtree_api::Result<Self> {
        let _ = host;
        let ram = Arc::new(Ram::new(options.ram)?);
        let facts = Facts {
            driver: "emu",
            name: None,
            arch: Arch::X86_64,
            vcpus: Some(options.vcpus),
            extra: vec![("seed", options.seed.to_string())],
        };
        Ok(Self { facts, ram })
    }
}

fn later() -> Missing {
    Missing::new("not built yet for the built-in machine")
}

impl Driver for Emu {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn memory(&self) -> &dyn Memory {
        &*self.ram
    }

    fn registers(&self) -> Result<&dyn Registers, Missing> {
        Err(later())
    }

    fn execution(&self) -> Result<&dyn Execution, Missing> {
        Err(later())
    }

    fn events(&self) -> Result<&dyn EventSource, Missing> {
        Err(later())
    }

    fn views(&self) -> Result<&dyn Views, Missing> {
        Err(later())
    }

    fn injection(&self) -> Result<&dyn Injection, Missing> {
        Err(later())
    }
}
