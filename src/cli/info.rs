//! `vmtree info`.

use std::fmt::Write;
use std::sync::Arc;

use vmtree_api::{Driver, Missing, NoHost};

use super::{Failure, print};
use crate::drivers;

/// Opens the VM, tells what is known of it, and lets go of it.
pub fn run(source: &str) -> Result<(), Failure> {
    let driver = drivers::open(source, Arc::new(NoHost))?;
    print(&show(&*driver, source))
}

fn show(driver: &dyn Driver, source: &str) -> String {
    let facts = driver.facts();
    let map = driver.memory().map();
    let mut out = String::new();
    // Writing to a String can't fail.
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(out, "{key} {value}");
    };
    line("driver", facts.driver);
    line("source", source);
    if let Some(name) = &facts.name {
        line("name", name);
    }
    line("arch", &facts.arch.to_string());
    if let Some(vcpus) = facts.vcpus {
        line("vcpus", &vcpus.to_string());
    }
    line("ram_bytes", &map.ram_bytes().to_string());
    line("ram_end", &format!("{:#x}", map.ram_end()));
    for (key, value) in &facts.extra {
        line(key, value);
    }
    line("registers", &offered(driver.registers().err()));
    line("execution", &offered(driver.execution().err()));
    line("events", &offered(driver.events().err()));
    line("views", &offered(driver.views().err()));
    line("injection", &offered(driver.injection().err()));
    out
}

fn offered(missing: Option<Missing>) -> String {
    missing.map_or_else(|| "yes".to_owned(), |missing| format!("no, {missing}"))
}
