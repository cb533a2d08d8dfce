//! `cargo ci`: what CI runs, a row each. `cargo ci NAME...` runs some of it.

mod beside;

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use beside::Beside;

/// A step of CI.
struct Task {
    name: &'static str,
    about: &'static str,
    /// The program, without which the task is skipped by name; cargo is always there.
    needs: &'static str,
    command: &'static [&'static str],
}

const TASKS: &[Task] = &[
    Task { name: "fmt", about: "formatting", needs: "cargo", command: &["cargo", "fmt", "--all", "--check"] },
    Task {
        name: "clippy",
        about: "lints, warnings denied",
        needs: "cargo",
        command: &["cargo", "clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
    },
    Task {
        name: "scripts",
        about: "shell scripts",
        needs: "shellcheck",
        command: &[
            "sh",
            "-c",
            "git ls-files -z '*.sh' .ci/run mount-helpers/mount.vmtree | xargs -0 shellcheck",
        ],
    },
    Task {
        name: "deny",
        about: "licences, sources and duplicate crates",
        needs: "cargo-deny",
        command: &["cargo", "deny", "check", "licenses", "bans", "sources"],
    },
    Task {
        name: "test",
        about: "the README's test command",
        needs: "cargo",
        command: &["cargo", "test", "--workspace"],
    },
    Task {
        name: "qemu11",
        about: "the plugin in QEMU 11: its events, the suite, a Debian guest",
        needs: "apt-get",
        command: &["tests/labs/qemu/versions.sh", "run", "11", "events"],
    },
    Task {
        name: "qemu10",
        about: "the plugin in QEMU 10.0",
        needs: "apt-get",
        command: &["tests/labs/qemu/versions.sh", "run", "10", "plugin"],
    },
    Task {
        name: "kvmi",
        about: "the kvmi driver over the lab's libkvmi and endpoint, with two vCPUs",
        needs: "pkg-config",
        command: &[
            "env",
            "VMTREE_ROUGH=11",
            "VMTREE_KVMI_TARGET=target",
            "tests/labs/kvmi/lab.sh",
            "run",
            "--skip",
            "one_vcpu",
            "--skip",
            "four_vcpus",
        ],
    },
    Task {
        name: "doc",
        about: "documentation builds without warnings",
        needs: "cargo",
        command: &["env", "RUSTDOCFLAGS=-D warnings", "cargo", "doc", "--workspace", "--no-deps", "--quiet"],
    },
    Task {
        name: "xen",
        about: "the driver of Xen domains: a real Xen in Bochs, the checks that are of what it alone does",
        needs: "mmdebstrap",
        command: &["tests/labs/xen/ci.sh"],
    },
];

fn found(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

fn run(task: &Task) -> bool {
    if !found(task.needs) {
        println!("== {}: SKIPPED, {} is not installed", task.name, task.needs);
        return true;
    }
    println!("== {}: {}", task.name, task.about);
    let begun = Instant::now();
    let Some((program, args)) = task.command.split_first() else { return false };
    let passed = Command::new(program).args(args).status().is_ok_and(|status| status.success());
    let word = if passed { "passed" } else { "FAILED" };
    println!("== {}: {word} in {:.0} s", task.name, begun.elapsed().as_secs_f64());
    passed
}

/// The task that runs beside the others, because its emulator's clock is not the machine's, and the one that it is begun behind: what
/// that one tests takes a machine with nothing else to do.
const BESIDE: &str = "xen";
const BEHIND: &str = "test";
/// CI has half an hour; what runs beside is ended then.
const LATEST: Duration = Duration::from_secs(27 * 60);

fn main() -> ExitCode {
    let begun = Instant::now();
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted.iter().find(|name| TASKS.iter().all(|task| task.name != **name)) {
        let known: Vec<&str> = TASKS.iter().map(|task| task.name).collect();
        eprintln!("there is no task '{unknown}'; there are: {}", known.join(", "));
        return ExitCode::from(2);
    }
    let mut chosen =
        TASKS.iter().filter(|task| wanted.is_empty() || wanted.iter().any(|name| name == task.name));
    let mut beside = None;
    let passed = chosen.all(|task| {
        if let Some(running) = (task.name == BESIDE).then(|| beside.take()).flatten() {
            return Beside::ends(running, LATEST.saturating_sub(begun.elapsed()));
        }
        let passed = run(task);
        let other = TASKS.iter().find(|other| other.name == BESIDE && found(other.needs));
        if passed && wanted.is_empty() && task.name == BEHIND {
            beside = other.and_then(|other| Beside::begin(other.name, other.command));
        }
        passed
    });
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
