//! `info`: facts of the VM and of this mount, flat `key value` lines.

use std::fmt::Write;

use vmtree_api::{Driver, PAGE_SIZE};

use super::Ctx;
use super::row::Need;
use crate::error::FsResult;
use crate::memory::Holes;

/// The file `info`.
pub fn show(ctx: &Ctx<'_>) -> FsResult<Vec<u8>> {
    let tree = ctx.tree;
    let mut text = of_vm(tree.driver(), &tree.source);
    let options = &tree.options;
    let passthrough = match Need::Blocks.met(tree.driver()) {
        Ok(()) => tree.passthrough.get().map_or("not mounted", String::as_str).to_owned(),
        Err(missing) => format!("no: {missing}"),
    };
    let lines = [
        ("read_only", if options.ro { "yes" } else { "no" }.to_owned()),
        ("holes", if options.holes == Holes::Error { "eio" } else { "zero" }.to_owned()),
        ("reply_timeout_ms", options.reply_timeout.as_millis().to_string()),
        ("threads", options.threads.to_string()),
        ("ram_passthrough", passthrough),
        ("daemon_pid", std::process::id().to_string()),
        ("vmtree_version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    for (key, value) in lines {
        let _ = writeln!(text, "{key} {value}");
    }
    Ok(text.into_bytes())
}

/// The facts that don't depend on a mount, for `vmtree info` too. What is not known has no line.
#[must_use]
pub fn of_vm(driver: &dyn Driver, source: &str) -> String {
    let facts = driver.facts();
    let map = driver.memory().map();
    let mut text = format!("driver {}\nsource {source}\n", facts.driver);
    if let Some(name) = &facts.name {
        let _ = writeln!(text, "name {name}");
    }
    let _ = writeln!(text, "arch {}", facts.arch);
    if let Some(vcpus) = facts.vcpus {
        let _ = writeln!(text, "vcpus {vcpus}");
    }
    let _ = writeln!(text, "ram_bytes {}", map.ram_bytes());
    let _ = writeln!(text, "max_gpa {:#x}", map.ram_end().saturating_sub(1));
    let _ = writeln!(text, "page_size {PAGE_SIZE}");
    let _ = writeln!(text, "map_generation {}", map.generation());
    if let Some(cost) = driver.registers().ok().and_then(|registers| registers.cost()) {
        let _ = writeln!(text, "register_snapshot_us {}", cost.as_micros());
    }
    for (key, value) in &facts.extra {
        let _ = writeln!(text, "{key} {value}");
    }
    text
}
