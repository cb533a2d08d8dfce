//! The guided tour of `vmtree demo`: real commands on real files, run in the mountpoint, with their real output.

use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// A step of the tour.
struct Step {
    /// What it shows.
    about: &'static str,
    /// The command, as one would type it in the mountpoint.
    command: &'static str,
}

const fn step(about: &'static str, command: &'static str) -> Step {
    Step { about, command }
}

/// The tour.
const STEPS: &[Step] = &[
    step("What this machine is.", "cat info"),
    step("Its physical memory, range by range.", "cat mem.map"),
    step("Its registers, taken at one instant.", "head -n 8 vcpu/0/regs/all"),
    step("It runs: its time stamp counter moves.", "cat vcpu/0/regs/tsc; sleep 0.1; cat vcpu/0/regs/tsc"),
    step(
        "Memory is a file, its offset the guest's physical address. At 0x201000 lies a greeting.",
        "od -A x -t x1z -j 0x201000 -N 32 mem",
    ),
    step(
        "Write another one. A process of the guest watches that place.",
        r"printf 'files all the way down\0' | dd of=mem seek=$((0x201000)) oflag=seek_bytes conv=notrunc status=none",
    ),
    step("It noticed, and answered at 0x202000.", "sleep 0.3; od -A x -t x1z -j 0x202000 -N 32 mem"),
    step("Events are pipes: the next two switches of address space.", "cat events/cr3 | head -n 2"),
    step(
        "A wall around the page of the answers: the guest's writes to it are dropped.",
        "echo '0x202000-0x203000 r-x deny' > views/0/access; cat views/0/access",
    ),
    step(
        "So this greeting gets no answer: the old one stays.",
        r"printf 'anybody there?\0' | dd of=mem seek=$((0x201000)) oflag=seek_bytes conv=notrunc status=none; \
  sleep 0.3; od -A x -t x1z -j 0x202000 -N 32 mem",
    ),
    step(
        "The writes that met the wall, with nobody there to decide on them.",
        "grep slat events/stats; echo reset > views/0/access",
    ),
    step("Control is a file, too.", "echo pause > ctl; cat state"),
    step("Paused, it stands still.", "cat vcpu/0/regs/tsc; cat vcpu/0/regs/tsc"),
    step("And on it goes.", "echo resume > ctl; cat state"),
];

/// Runs the tour in `mountpoint`; ends early, without an error, when a command is interrupted.
///
/// # Errors
/// Nothing can be printed, or no shell is there.
pub fn run(mountpoint: &Path) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "The built-in machine is mounted at {}\n", mountpoint.display())?;
    for step in STEPS {
        writeln!(out, "# {}\n$ {}", step.about, step.command)?;
        out.flush()?;
        let mut shell = Command::new("sh");
        shell.args(["-c", step.command]).current_dir(mountpoint).stdin(Stdio::null());
        if shell.status()?.signal().is_some() {
            return Ok(());
        }
        writeln!(out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_say_what_they_show_and_stay_in_the_mountpoint() {
        for step in STEPS {
            assert!(step.about.ends_with('.'), "{}", step.about);
            assert!(!step.command.contains("sudo") && !step.command.contains("../"), "{}", step.command);
        }
    }

    #[test]
    fn the_addresses_are_those_of_the_guest() {
        for address in [vmtree_guest::layout::GREETING, vmtree_guest::layout::REPLY] {
            let address = format!("{address:#x}");
            assert!(STEPS.iter().any(|step| step.command.contains(&address)), "{address}");
        }
    }
}
