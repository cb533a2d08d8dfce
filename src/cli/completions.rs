//! `vmtree completions`.

use clap::CommandFactory;

use super::{Cli, Failure, print};

/// Prints what a shell sources to complete our commands.
pub fn run(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "vmtree", &mut script);
    print(&String::from_utf8_lossy(&script))
}
