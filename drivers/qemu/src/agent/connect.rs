//! Finding the agent of a QEMU: `-plugin ...libvmtree_qemu.so,socket=PATH` on its command line, or `agent=PATH` in SOURCE.

use std::path::Path;
use std::sync::Arc;
use std::thread;

use vmtree_agent::client::Client;
use vmtree_api::Missing;

use super::events::Events;
use super::line::Socket;
use crate::process::Process;

/// The file that QEMU loads.
pub const LIBRARY: &str = "libvmtree_qemu.so";

/// The agent of the QEMU `pid`, at `told` or where its command line says.
///
/// # Errors
/// It has none, or it can't be had now; with the cure.
pub fn connect(pid: u32, told: Option<&Path>, kvm: bool) -> Result<Events, Missing> {
    let named = Process::read(pid).ok().and_then(|process| process.agent_socket());
    let Some(path) = told.map(Path::to_owned).or(named) else { return Err(absent(kvm)) };
    let cure = format!("check that QEMU runs with -plugin {LIBRARY},socket={}", path.display());
    let failed =
        |why: String| Missing::new(format!("the agent at {}: {why}", path.display())).cure(cure.clone());
    let socket = Socket::connect(&path).map_err(|error| failed(error.to_string()))?;
    let (client, rest) = Client::open(Arc::new(socket)).map_err(failed)?;
    let reader = Arc::clone(&client);
    let thread = thread::Builder::new().name("qemu-agent".to_owned());
    thread.spawn(move || reader.read_forever(rest)).map_err(|error| failed(error.to_string()))?;
    Ok(Events::new(client))
}

fn absent(kvm: bool) -> Missing {
    if kvm {
        return Missing::new("QEMU tells of events by a TCG plugin, and this guest runs on KVM")
            .cure("start QEMU with -accel tcg and the plugin; see docs/agent.md");
    }
    Missing::new("this QEMU has not loaded vmtree's plugin").cure(format!(
        "start it with -plugin /usr/lib/vmtree/{LIBRARY},socket=PATH (libvirt: <qemu:commandline><qemu:arg value='-plugin'/>\
         <qemu:arg value='/usr/lib/vmtree/{LIBRARY},socket=PATH'/></qemu:commandline>)"
    ))
}
