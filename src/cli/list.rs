//! `vmtree list`.

use super::{Failure, complain, print};
use crate::drivers::DRIVERS;

/// A line a VM: its SOURCE, then what it is.
pub fn run() -> Result<(), Failure> {
    let found: Vec<_> = DRIVERS.iter().flat_map(|entry| (entry.list)()).collect();
    if found.is_empty() {
        complain("no running VM found; the built-in machine is always there: vmtree mount emu: MOUNTPOINT");
        return Ok(());
    }
    let width = found.iter().map(|vm| vm.source.chars().count()).max().unwrap_or(0);
    let lines = found.iter().map(|vm| format!("{:width$}  {}\n", vm.source, vm.about));
    print(&lines.collect::<String>())
}
