//! From a target to the QEMU process and an open monitor connection of it.

use std::path::Path;

use vmtree_api::{Error, ErrorKind, Listed, Result};

use crate::process::Process;
use crate::qmp::Qmp;
use crate::source::Target;

const OP: &str = "find QEMU";
const QMP_CURE: &str = "start QEMU with -qmp unix:PATH,server=on,wait=off";

/// A QEMU that answers.
pub struct Found {
    /// Its process.
    pub pid: u32,
    /// Its monitor.
    pub qmp: Qmp,
}

/// Finds the QEMU that `target` means and connects to its monitor.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is none or it is no QEMU, [`ErrorKind::Invalid`] if a name means several,
/// [`ErrorKind::Unsupported`] if it has no QMP socket, and those of [`Qmp::connect`].
pub fn connect(target: &Target) -> Result<Found> {
    match target {
        // Absolute, because a mount in the background has another working directory.
        Target::Socket(path) => by_socket(&std::path::absolute(path).unwrap_or_else(|_| path.clone())),
        Target::Name(name) => by_process(&named(name)?),
        Target::Pid(pid) => {
            let process = Process::read(*pid).map_err(|_| {
                not_found(format!("there is no process {pid}; 'vmtree list' shows what runs"))
            })?;
            if process.is_qemu() {
                return by_process(&process);
            }
            let program = &process.program;
            Err(not_found(format!("process {pid} ('{program}') is no QEMU; 'vmtree list' shows what runs")))
        }
    }
}

fn not_found(why: String) -> Error {
    Error::new(ErrorKind::NotFound, OP, why)
}

fn by_socket(path: &Path) -> Result<Found> {
    let qmp = Qmp::connect(path)?;
    let peer = qmp.peer()?.and_then(|pid| Process::read(pid).ok());
    if let Some(process) = peer.as_ref().filter(|process| process.is_qemu()) {
        return Ok(Found { pid: process.pid, qmp });
    }
    // The peer is who called listen(2). A manager may have done so and passed the socket on.
    let holder = Process::all_qemus().into_iter().find(|process| process.listens_at(path));
    match (holder, peer) {
        (Some(process), _) => Ok(Found { pid: process.pid, qmp }),
        (None, Some(peer)) => {
            let at = path.display();
            let Process { pid, program, .. } = peer;
            Err(not_found(format!("'{at}' is served by process {pid} ('{program}'), which is no QEMU")))
        }
        (None, None) => {
            Err(not_found(format!("the process behind '{}' can't be seen from here", path.display())))
        }
    }
}

fn named(name: &str) -> Result<Process> {
    let mut found = Process::all_qemus();
    found.retain(|process| process.command_line().name.as_deref() == Some(name));
    if found.len() > 1 {
        let pids: Vec<String> = found.iter().map(|process| format!("pid={}", process.pid)).collect();
        let why = format!("the name '{name}' means several VMs; write qemu: and one of {}", pids.join(", "));
        return Err(Error::new(ErrorKind::Invalid, OP, why));
    }
    found.pop().ok_or_else(|| {
        not_found(format!(
            "no QEMU was started with -name {name} (or it is out of sight); 'vmtree list' shows what runs"
        ))
    })
}

/// Connects to the first of the process's QMP sockets that lets us in.
fn by_process(process: &Process) -> Result<Found> {
    let pid = process.pid;
    let none = format!("process {pid} has no QMP socket that can be found; {QMP_CURE}");
    let mut refused = Error::new(ErrorKind::Unsupported, OP, none);
    for path in process.qmp_sockets() {
        match by_socket(&path) {
            Ok(found) if found.pid == pid => return Ok(found),
            Ok(other) => {
                let why = format!("'{}' of process {pid} is served by process {}", path.display(), other.pid);
                refused = not_found(why);
            }
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// The QEMUs that run on this host, as far as /proc shows them. None of them is talked to.
#[must_use]
pub fn list() -> Vec<Listed> {
    Process::all_qemus().iter().map(listed).collect()
}

fn listed(process: &Process) -> Listed {
    let pid = process.pid;
    let line = process.command_line();
    // In a SOURCE, a comma ends the path.
    let sockets = process.qmp_sockets();
    let path = sockets.iter().filter_map(|path| path.to_str()).find(|path| !path.contains(','));
    let source = path.map_or_else(|| format!("qemu:pid={pid}"), |path| format!("qemu:{path}"));
    let mut about =
        vec![line.name.unwrap_or_else(|| "unnamed".to_owned()), format!("{} process {pid}", process.program)];
    about.extend(line.memory.map(|memory| format!("-m {memory}")));
    if sockets.is_empty() {
        about.push(format!("no QMP socket: {QMP_CURE}"));
    }
    Listed { source, about: about.join(", ") }
}
