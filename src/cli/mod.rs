//! The command line: its types, and one file a command.

mod completions;
mod demo;
mod doctor;
mod info;
mod list;
mod mount;
mod tour;
mod umount;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  vmtree demo                                    a guided tour of the built-in machine
  vmtree list                                    the VMs that run here
  vmtree mount qemu:name=debian /mnt/vm -o ro
  hexdump -C /mnt/vm/mem | less
  vmtree umount /mnt/vm

Exit codes: 0 done, 1 failed, 2 wrong usage, 32 mount failed.
The logs' detail is set by -v, -vv or RUST_LOG.";

/// Mounts a virtual machine as a directory tree: memory, registers and control as files.
#[derive(Debug, Parser)]
#[command(name = "vmtree", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount a VM at a directory
    Mount(MountArgs),
    /// Serve a mount; started by `vmtree mount`
    #[command(hide = true)]
    Serve(MountArgs),
    /// Unmount, and wait until all is given back
    Umount {
        /// The directory
        mountpoint: PathBuf,
    },
    /// List the VMs that run on this host, with the SOURCE to use
    List,
    /// Show a VM's facts and what can be done with it, without mounting
    Info {
        /// The VM, as DRIVER:TARGET[,key=value...]
        source: String,
    },
    /// Tell what is missing on this host, and the cure
    Doctor,
    /// Show a short tour of the built-in machine; Ctrl-C ends it
    Demo {
        /// The directory; a fresh one unless given
        mountpoint: Option<PathBuf>,
        /// End after the tour
        #[arg(long, hide = true)]
        once: bool,
    },
    /// Print the completions for a shell
    Completions {
        /// Which
        shell: clap_complete::Shell,
    },
    /// Undo what a killed daemon left; started by the daemon
    #[command(hide = true)]
    Guardian,
}

const MOUNT_HELP: &str = "\
SOURCE is DRIVER:TARGET[,key=value...], such as
  emu:  emu:ram=256M,vcpus=4  qemu:/run/vm.qmp  qemu:name=debian
'vmtree list' shows those of this host.

Options:
  ro  allow_other  uid=N  gid=N  mode=OCTAL  holes=zero|eio
  cache=SIZE  cache_ms=N  reply_timeout=SECONDS  threads=N
What mount(8), fstab and systemd add by themselves is accepted.

Returns once the mount answers.
Exit codes: 0 mounted, 2 wrong usage, 32 failed, with nothing left behind.";

#[derive(Args, Clone, Debug)]
#[command(after_help = MOUNT_HELP)]
struct MountArgs {
    /// The VM
    source: String,
    /// The directory
    mountpoint: PathBuf,
    /// Mount options
    #[arg(short = 'o', value_name = "OPT[,OPT...]")]
    options: Vec<String>,
    /// Stay in the foreground and log to standard error
    #[arg(short, long)]
    foreground: bool,
    /// Log more; twice for still more
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

/// What became of a command that failed.
#[derive(Debug)]
struct Failure {
    /// One line, with the cure.
    why: String,
    code: u8,
}

impl Failure {
    fn new(why: impl ToString) -> Self {
        Self { why: why.to_string(), code: 1 }
    }
}

impl From<vmtree_api::Error> for Failure {
    fn from(error: vmtree_api::Error) -> Self {
        Self::new(error)
    }
}

/// Runs the command that the arguments name.
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse_from(arguments(std::env::args_os()));
    start_logging(&cli.command);
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure.why);
            ExitCode::from(failure.code)
        }
    }
}

/// The arguments, with the command that mount(8) leaves out: for a mount of the type fuse.vmtree, so also for a
/// remount, it calls `vmtree SOURCE MOUNTPOINT -o OPTIONS`. No command has a colon in its name.
fn arguments(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut all: Vec<OsString> = given.collect();
    if all.get(1).is_some_and(|first| first.to_string_lossy().contains(':')) {
        all.insert(1, "mount".into());
    }
    all
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Mount(args) if args.foreground => mount::foreground(&args),
        Command::Mount(args) => mount::background(&args),
        Command::Serve(args) => mount::serve(&args),
        Command::Umount { mountpoint } => umount::run(&mountpoint),
        Command::List => list::run(),
        Command::Info { source } => info::run(&source),
        Command::Doctor => doctor::run(),
        Command::Demo { mountpoint, once } => demo::run(mountpoint, once),
        Command::Completions { shell } => completions::run(shell),
        Command::Guardian => crate::guardian::main().map_err(Failure::new),
    }
}

fn start_logging(command: &Command) {
    let verbose = match command {
        Command::Mount(args) | Command::Serve(args) => args.verbose,
        _ => 0,
    };
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    // fuser warns of each operation that is left out on purpose.
    let filter = format!("{level},fuser=error");
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(filter)).init();
}

/// Tells what is wrong. Where nobody listens the exit code has to do.
fn complain(why: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "vmtree: {why}");
}

/// Writes a command's result; a reader that closes early, such as head(1), is no failure.
fn print(text: &str) -> Result<(), Failure> {
    use std::io::{ErrorKind, Write};
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("write the output: {error}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn mount_takes_options_behind_the_paths() {
        let cli =
            Cli::try_parse_from(["vmtree", "mount", "emu:", "/mnt", "-o", "ro,uid=1", "-o", "gid=2", "-f"]);
        let Command::Mount(args) = cli.unwrap().command else { panic!("not mount") };
        assert_eq!(args.options, ["ro,uid=1", "gid=2"]);
        assert!(args.foreground);
    }
}
