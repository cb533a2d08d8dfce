//! TEMPORARY: stands in for the lead's src/tree until the branches meet.
#![allow(missing_docs)]

use std::sync::{Arc, Mutex};

use vmtree_api::Driver;

use crate::text::options::Options;

pub struct Tree {
    driver: Arc<dyn Driver>,
    pub source: String,
    released: Mutex<bool>,
}

impl Tree {
    pub fn new(driver: Arc<dyn Driver>, source: String, _options: Options) -> Arc<Self> {
        Arc::new(Self { driver, source, released: Mutex::new(false) })
    }
    pub fn release(&self) {
        if let Ok(mut released) = self.released.lock() {
            *released = true;
        }
    }
    pub fn info(&self) -> String {
        format!("driver {}\nsource {}\n", self.driver.facts().driver, self.source)
    }
}

/// A machine with nothing in it, until vmtree_emu::open is there.
pub mod placeholder {
    use super::*;
    use vmtree_api::events::{EventSource, Injection};
    use vmtree_api::views::Views;
    use vmtree_api::*;

    struct Nothing {
        facts: Facts,
        ram: Vec<u8>,
    }

    pub fn open(mut source: Source, host: Arc<dyn Host>) -> Result<Box<dyn Driver>> {
        let ram = source.take_size("ram", 1 << 20)?;
        let ends = source.take_size("ends_ms", 0)?;
        source.finish(&["ram"])?;
        if ends > 0 {
            std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(ends));
                host.ended("it was told to");
            });
        }
        let facts =
            Facts { driver: "emu", name: None, arch: Arch::X86_64, vcpus: Some(1), extra: Vec::new() };
        Ok(Box::new(Nothing { facts, ram: vec![0; ram as usize] }))
    }

    impl Memory for Nothing {
        fn map(&self) -> Arc<MemoryMap> {
            let end = Gpa(self.ram.len() as u64);
            Arc::new(MemoryMap::new(
                0,
                vec![Region { start: Gpa(0), end, kind: RegionKind::Ram, block: None }],
            ))
        }
        fn blocks(&self) -> Vec<Block> {
            Vec::new()
        }
        fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<usize> {
            buf.copy_from_slice(&self.ram[gpa.0 as usize..gpa.0 as usize + buf.len()]);
            Ok(buf.len())
        }
        fn write(&self, _: Gpa, data: &[u8]) -> Result<usize> {
            Ok(data.len())
        }
        fn lend(&self, _: Gpa, _: usize, _: &mut dyn FnMut(&[u8])) -> Result<bool> {
            Ok(false)
        }
    }

    impl Driver for Nothing {
        fn facts(&self) -> &Facts {
            &self.facts
        }
        fn memory(&self) -> &dyn Memory {
            self
        }
        fn registers(&self) -> std::result::Result<&dyn Registers, Missing> {
            Err(Missing::new("a placeholder"))
        }
        fn execution(&self) -> std::result::Result<&dyn Execution, Missing> {
            Err(Missing::new("a placeholder"))
        }
        fn events(&self) -> std::result::Result<&dyn EventSource, Missing> {
            Err(Missing::new("a placeholder").cure("wait for it"))
        }
        fn views(&self) -> std::result::Result<&dyn Views, Missing> {
            Err(Missing::new("a placeholder"))
        }
        fn injection(&self) -> std::result::Result<&dyn Injection, Missing> {
            Err(Missing::new("a placeholder"))
        }
    }
}
