//! The `vmtree` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    vmtree::cli::run()
}
