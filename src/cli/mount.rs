//! `vmtree mount`, in the background and in front.

use std::ffi::OsString;
use std::process;

use super::{Failure, MountArgs};
use crate::daemon::ends::End;
use crate::daemon::{self, notify};
use crate::guardian::keep::Log;
use crate::guardian::mounts;
use crate::mount::{self, Request};

/// What mount(8) calls a failed mount.
const MOUNT_FAILED: u8 = 32;

/// Starts the daemon and returns once its mount answers.
pub fn background(args: &MountArgs) -> Result<(), Failure> {
    let mut arguments: Vec<OsString> = vec!["serve".into()];
    arguments.extend(args.options.iter().map(|list| format!("-o{list}").into()));
    arguments.extend((0..args.verbose).map(|_| "-v".into()));
    arguments.push("--".into());
    arguments.push(args.source.clone().into());
    // In full, so that ps(1) shows which mount a daemon serves; the daemon tells what is wrong with it.
    let mountpoint = mounts::canonical(&args.mountpoint).unwrap_or_else(|_| args.mountpoint.clone());
    arguments.push(mountpoint.into());
    daemon::start(&arguments).map_err(failed)
}

/// The daemon itself.
pub fn serve(args: &MountArgs) -> Result<(), Failure> {
    daemon::leave_session();
    match mount::serve(&request(args, Log::Nowhere), |_| daemon::report_ready().map_err(|_| End::Abandoned)) {
        Ok(_) => process::exit(0),
        Err(error) => {
            daemon::report_failure(&error.to_string());
            process::exit(MOUNT_FAILED.into())
        }
    }
}

/// Serves in this process until the end.
pub fn foreground(args: &MountArgs) -> Result<(), Failure> {
    let ready = |_: &std::path::Path| {
        notify::ready();
        Ok(())
    };
    mount::serve(&request(args, Log::Stderr), ready).map_err(|error| failed(error.to_string()))?;
    process::exit(0)
}

fn request(args: &MountArgs, log: Log) -> Request {
    let MountArgs { source, mountpoint, options, .. } = args.clone();
    Request { source, mountpoint, options, log }
}

fn failed(why: String) -> Failure {
    Failure { why, code: MOUNT_FAILED }
}
