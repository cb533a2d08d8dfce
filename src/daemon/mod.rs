//! A mount as a process: how it goes to the background, and how it learns that its end has come.

pub mod ends;
pub mod notify;
pub mod presence;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// What the child says once the mount answers; anything else is why it does not.
const READY: u8 = 0;

/// Runs this program again with `arguments`, in the background, and returns once its mount answers.
///
/// # Errors
/// Why the mount failed, in the child's words.
pub fn start(arguments: &[std::ffi::OsString]) -> Result<(), String> {
    let mut command = this_program();
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("start the daemon: {error}"))?;
    let mut said = Vec::new();
    if let Some(pipe) = child.stdout.as_mut() {
        // A pipe that breaks has ended; what was said before it counts.
        let _ = read_until_ready(pipe, &mut said);
    }
    if said.first() == Some(&READY) {
        return Ok(());
    }
    let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    Err(if said.is_empty() { format!("the daemon died before its mount answered ({status})") } else { said })
}

/// This very executable, also where its file has been replaced meanwhile.
pub(crate) fn this_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("vmtree");
    command
}

fn read_until_ready(pipe: &mut impl Read, said: &mut Vec<u8>) -> io::Result<()> {
    let mut buf = [0; 1024];
    while said.first() != Some(&READY) {
        match pipe.read(&mut buf)? {
            0 => return Ok(()),
            count => said.extend_from_slice(buf.get(..count).unwrap_or_default()),
        }
    }
    Ok(())
}

/// In the child: leaves the caller's session.
pub fn leave_session() {
    // It fails only for the leader of a group, which a fresh child is not.
    let _ = rustix::process::setsid();
    name_process();
}

/// In the child: tells the waiting parent that the mount answers, and lets go of the caller's terminal.
///
/// # Errors
/// The caller is gone: nobody wants the mount.
pub fn report_ready() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let pipe = io::stdout().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    File::from(pipe).write_all(&[READY])
}

/// In the child: tells the waiting parent why the mount failed.
pub fn report_failure(why: &str) {
    // A parent that is gone needs no telling.
    let _ = writeln!(io::stdout(), "{why}");
}

/// Gives the process its name back, which re-executing /proc/self/exe took from it.
pub(crate) fn name_process() {
    // For ps(1) alone, so nothing is lost where it fails.
    let _ = fs::write("/proc/self/comm", "vmtree");
}

/// The user and group that files belong to unless options say otherwise: those of the caller.
#[must_use]
pub fn owner() -> (u32, u32) {
    (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw())
}

/// Whether this process may do what root may.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether `program` is found in PATH.
#[must_use]
pub fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).is_file())
}
