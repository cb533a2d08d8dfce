//! Writes the guest's ELF file to the path given.

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("usage: vmtree-guest FILE: writes the guest's ELF to FILE");
        return ExitCode::from(2);
    };
    match std::fs::write(&path, vmtree_guest::elf()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmtree-guest: {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}
