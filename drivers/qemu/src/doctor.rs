//! What this driver needs of the host, for `vmtree doctor`.

use std::env;
use std::fs;
use std::path::PathBuf;

use vmtree_api::{Check, Missing};

use crate::agent::Plugin;
use crate::gdb::folder;
use crate::process::Process;

/// The bit of CAP_SYS_PTRACE (linux/capability.h).
const CAP_SYS_PTRACE: u32 = 19;

/// The rights to another process's memory, and QEMU itself.
#[must_use]
pub fn checks() -> Vec<Check> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let yama = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok();
    vec![
        Check { what: "the memory of a QEMU process".to_owned(), found: rights(&status, yama.as_deref()) },
        Check { what: "QEMU".to_owned(), found: installed() },
        Check { what: "events of QEMU guests".to_owned(), found: plugin() },
        Check { what: "folders of killed vmtrees in /tmp".to_owned(), found: Ok(swept(folder::sweep())) },
    ]
}

fn rights(status: &str, yama: Option<&str>) -> Result<String, Missing> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    if bits >> CAP_SYS_PTRACE & 1 == 1 {
        return Ok("of any user (CAP_SYS_PTRACE)".to_owned());
    }
    match yama.map(str::trim) {
        None | Some("0") => Ok("of QEMUs that run as this user; for others run vmtree as root".to_owned()),
        Some(scope) => {
            Err(Missing::new(format!("kernel.yama.ptrace_scope is {scope}, and CAP_SYS_PTRACE is missing"))
                .cure("run vmtree as root, or set kernel.yama.ptrace_scope=0 for QEMUs of this user"))
        }
    }
}

/// The line to start a QEMU with.
fn plugin() -> Result<String, Missing> {
    let plugin = Plugin::for_vm(None);
    if plugin.is_found() {
        return Ok(format!("{} (TCG, QEMU 10.0 or later; libvirt: {})", plugin.flag(), plugin.libvirt()));
    }
    Err(Missing::new("libvmtree_qemu.so is neither beside this program nor in ../lib/vmtree")
        .cure(format!("put it there, then {}", plugin.cure())))
}

fn swept(folders: usize) -> String {
    if folders == 0 { "none".to_owned() } else { format!("{folders} removed") }
}

fn installed() -> Result<String, Missing> {
    let running = Process::all_qemus().len();
    let folders = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&folders).map(|folder| folder.join("qemu-system-x86_64"));
    let found = places.chain([PathBuf::from("/usr/libexec/qemu-kvm")]).find(|path| path.is_file());
    match found {
        Some(path) => Ok(format!("{}, {running} running", path.display())),
        None if running > 0 => Ok(format!("{running} running")),
        None => {
            Err(Missing::new("qemu-system-x86_64 is not installed and none runs")
                .cure("install qemu-system-x86"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_follow_the_capability_then_yama() {
        let with = "Name:\tx\nCapEff:\t0000000000080000\n";
        let without = "CapEff:\t000001fffff7ffff\n";
        assert!(rights(with, Some("3\n")).unwrap().contains("CAP_SYS_PTRACE"));
        assert!(rights(without, Some("0\n")).is_ok());
        assert!(rights(without, None).is_ok());
        let missing = rights(without, Some("1\n")).unwrap_err();
        assert!(missing.to_string().contains("ptrace_scope is 1"), "{missing}");
        assert!(rights("", Some("1")).is_err());
    }

    #[test]
    fn each_check_says_something() {
        for check in checks() {
            // `vmtree doctor` puts the driver's name before it.
            assert!(!check.what.is_empty() && !check.what.contains("qemu:"));
            if let Err(missing) = check.found {
                assert!(missing.cure.is_some(), "{missing}");
            }
        }
    }
}
