//! Finding the agent of a QEMU: `-plugin ...libvmtree_qemu.so,socket=PATH` on its command line, or `agent=PATH` in SOURCE.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use vmtree_api::{Error, ErrorKind, Facts, Memory, Missing, Result};

use super::{Events, Plugin};
use crate::process::Process;

/// The agent in the QEMU `pid`, or why there is none. One that the user has named must be there.
///
/// # Errors
/// Those of [`Events::connect`] for the one that is named, and [`ErrorKind::NotFound`] where it is another process's.
pub fn find(
    pid: u32,
    named: Option<&Path>,
    facts: &Facts,
    memory: Arc<dyn Memory>,
    ended: Arc<AtomicBool>,
) -> Result<std::result::Result<Events, Missing>> {
    let process = Process::read(pid).ok();
    if let Some(path) = named {
        // A mount in the background has another working directory.
        let path = std::path::absolute(path).unwrap_or_else(|_| PathBuf::from(path));
        if path.exists() && process.is_some_and(|process| !process.listens_at(&path)) {
            let why = format!("process {pid} does not listen at agent={}", path.display());
            return Err(Error::new(ErrorKind::NotFound, "reach the agent", why));
        }
        return Events::connect(&path, memory, ended).map(Ok);
    }
    let told = process.as_ref().and_then(|process| process.command_line().agent);
    let Some(told) = told else { return Ok(Err(absent(facts))) };
    let reached = process.and_then(|process| process.agent_socket());
    let path = reached.unwrap_or_else(|| PathBuf::from(told));
    Ok(Events::connect(&path, memory, ended).map_err(|error| Missing::new(error.why())))
}

fn absent(facts: &Facts) -> Missing {
    let plugin = Plugin::for_vm(facts.name.as_deref());
    if facts.extra.contains(&("accelerator", "kvm".to_owned())) {
        let why =
            "QEMU tells of events by a plugin, which it takes under TCG alone, and this VM runs under KVM";
        return Missing::new(why).cure(format!("{} and -accel tcg", plugin.cure()));
    }
    Missing::new("this QEMU was started without vmtree's plugin").cure(plugin.cure())
}
