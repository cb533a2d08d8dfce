//! `vmtree demo`.

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process;

use super::{Failure, tour};
use crate::daemon::ends::End;
use crate::guardian::keep::Log;
use crate::mount::{self, Request};

/// Mounts the built-in machine, shows the tour, and stays until it is ended; with `once` it ends then.
pub fn run(mountpoint: Option<PathBuf>, once: bool) -> Result<(), Failure> {
    let (mountpoint, fresh) = match mountpoint {
        Some(mountpoint) => (mountpoint, false),
        None => (fresh_directory().map_err(|error| Failure::new(format!("demo: {error}")))?, true),
    };
    let request = Request {
        source: "emu:".to_owned(),
        mountpoint: mountpoint.clone(),
        options: Vec::new(),
        log: Log::Stderr,
    };
    let result = mount::serve(&request, |mountpoint| show(mountpoint, once));
    if fresh && let Err(error) = fs::remove_dir(&mountpoint) {
        log::warn!("remove {}: {error}", mountpoint.display());
    }
    result?;
    process::exit(0)
}

fn show(mountpoint: &Path, once: bool) -> Result<(), End> {
    let shown = tour::run(mountpoint).and_then(|()| if once { Ok(()) } else { invite(mountpoint) });
    match shown {
        // Whoever looked on has gone, and would never end it.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(End::Over),
        Err(error) => log::warn!("the tour: {error}"),
        Ok(()) => {}
    }
    if once { Err(End::Over) } else { Ok(()) }
}

fn invite(mountpoint: &Path) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "Look around from another terminal: cd {}", mountpoint.display())?;
    writeln!(out, "README there tells of all the files. Ctrl-C here ends it.")
}

/// A directory of our own among the temporary ones.
fn fresh_directory() -> io::Result<PathBuf> {
    let path = std::env::temp_dir().join(format!("vmtree-demo-{}", process::id()));
    DirBuilder::new().mode(0o700).create(&path).map_err(|error| {
        io::Error::new(error.kind(), format!("{}: {error}; give a MOUNTPOINT", path.display()))
    })?;
    Ok(path)
}
