//! `vmtree doctor`.

use std::fs;

use vmtree_api::{Check, Missing};

use super::{Failure, print};
use crate::daemon::presence;
use crate::drivers::DRIVERS;
use crate::guardian::mounts::{self, Mount};
use crate::mount;

/// FUSE passthrough came with this version of Linux.
const PASSTHROUGH: (u32, u32) = (6, 9);
/// The number of CAP_SYS_ADMIN (capabilities(7)), which passthrough asks for.
const CAP_SYS_ADMIN: u32 = 21;

/// Looks at the host, then asks each driver; fails if not even the built-in machine could be mounted.
pub fn run() -> Result<(), Failure> {
    let found = mount::check_device().map(|()| "/dev/fuse can be used".to_owned());
    let device =
        Check { what: "mounting".to_owned(), found: found.map_err(|error| Missing::new(error.why())) };
    let works = device.found.is_ok();
    let mut lines = line(None, &device);
    lines += &line(None, &passthrough());
    for check in mounted() {
        lines += &line(None, &check);
    }
    for entry in DRIVERS {
        for check in (entry.checks)() {
            lines += &line(Some(entry.name), &check);
        }
    }
    print(&lines)?;
    if works { Ok(()) } else { Err(Failure::new("nothing can be mounted on this host; the cure is above")) }
}

fn line(driver: Option<&str>, check: &Check) -> String {
    let driver = driver.map_or_else(String::new, |driver| format!("{driver}: "));
    match &check.found {
        Ok(found) => format!("ok       {driver}{}: {found}\n", check.what),
        Err(missing) => format!("missing  {driver}{}: {missing}\n", check.what),
    }
}

fn passthrough() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = if version(&release).is_none_or(|version| version < PASSTHROUGH) {
        let missing = Missing::new(format!("kernel {} has no FUSE passthrough", release.trim()));
        Err(missing.cure("ram/* works, more slowly and without mmap; use Linux 6.9 or later"))
    } else if !has_capability(&status, CAP_SYS_ADMIN) {
        let missing = Missing::new("the kernel grants FUSE passthrough to CAP_SYS_ADMIN alone");
        Err(missing.cure("ram/* works, more slowly and without mmap; mount as root"))
    } else {
        Ok(format!("kernel {}", release.trim()))
    };
    Check { what: "ram/* at the host's speed".to_owned(), found }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.trim().split(|char: char| !char.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn has_capability(status: &str, number: u32) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> number & 1 == 1)
}

/// A line for each mount of ours, the dead ones with their cure.
fn mounted() -> Vec<Check> {
    mounts::ours().unwrap_or_default().iter().map(describe).collect()
}

fn describe(mount: &Mount) -> Check {
    let path = mount.path.display();
    let found = if presence::watch(&mounts::mark(mount)).is_none() && mounts::is_stale(mount) {
        let missing = Missing::new(format!("the daemon of {} at {path} is gone", mount.source));
        Err(missing.cure(format!("vmtree umount {path}")))
    } else {
        Ok(format!("{} at {path}", mount.source))
    };
    Check { what: "mount".to_owned(), found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_compared_as_numbers() {
        assert_eq!(version("6.18.44-fc-v595\n"), Some((6, 18)));
        assert!(version("6.10.0").unwrap() >= PASSTHROUGH && version("5.19").unwrap() < PASSTHROUGH);
        assert_eq!(version("unknown"), None);
    }

    #[test]
    fn a_capability_is_a_bit() {
        assert!(has_capability("Name:\tx\nCapEff:\t0000000000200000\n", CAP_SYS_ADMIN));
        assert!(!has_capability("CapEff:\t0000000000100000\n", CAP_SYS_ADMIN));
        assert!(!has_capability("", CAP_SYS_ADMIN));
    }

    #[test]
    fn a_line_names_the_driver_and_the_cure() {
        let missing = Missing::new("no ptrace right").cure("run as root");
        let check = Check { what: "memory".to_owned(), found: Err(missing) };
        assert_eq!(line(Some("qemu"), &check), "missing  qemu: memory: no ptrace right; run as root\n");
    }
}
