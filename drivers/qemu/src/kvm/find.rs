//! A vCPU's descriptor and thread in a QEMU process.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde_json::{Value, json};
use vmtree_api::{Error, ErrorKind, Result, VcpuId};

use super::Vcpu;
use super::run::Run;
use crate::qmp::Qmp;
use crate::sys::run::{RunPage, check_extension};

const OP: &str = "open a vCPU";

/// KVM_CAP_SYNC_REGS of linux/kvm.h.
const KVM_CAP_SYNC_REGS: libc::c_ulong = 74;

/// KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS and KVM_SYNC_X86_EVENTS (arch/x86/include/uapi/asm/kvm.h).
pub const FIELDS: u32 = 7;

/// Opens a vCPU of QEMU process `pid`.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where KVM doesn't share registers, [`ErrorKind::Denied`], [`ErrorKind::NotFound`]; those
/// of [`Qmp::execute`].
pub fn vcpu(pid: u32, qmp: &Qmp, vcpu: VcpuId) -> Result<Vcpu> {
    let failed = |what: &str, kind: ErrorKind, error: io::Error| Error::new(kind, OP, what).caused_by(error);
    // Bits that KVM doesn't know in the shared page would make it refuse to run the vCPU.
    let shared = File::open("/dev/kvm").and_then(|kvm| check_extension(&kvm, KVM_CAP_SYNC_REGS));
    let shared = shared.map_err(|error| failed("/dev/kvm can't be asked", ErrorKind::Denied, error))?;
    if shared & FIELDS != FIELDS {
        return Err(Error::new(ErrorKind::Unsupported, OP, "this KVM does not share registers"));
    }
    if is_encrypted(qmp)? {
        return Err(Error::new(ErrorKind::Unsupported, OP, "KVM shares no registers of an encrypted guest"));
    }
    let (thread, number) = identify(qmp, vcpu)?;
    let tid = thread_here(pid, thread).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, OP, format!("process {pid} has no thread {thread}"))
    })?;
    let fd = descriptor(pid, number)
        .map_err(|error| failed("its descriptor can't be had", ErrorKind::Denied, error))?;
    let page = RunPage::map(&fd).map_err(|error| failed("it can't be mapped", ErrorKind::Denied, error))?;
    Ok(Vcpu { tid, run: Run::new(page) })
}

/// Whether the guest's state may be kept from its host (SEV-ES, TDX). Of such a VM /dev/kvm knows nothing, and KVM refuses to
/// run it where registers are asked for (kvm_sync_valid_fields in Linux's arch/x86/kvm/x86.c): QEMU would give it up.
fn is_encrypted(qmp: &Qmp) -> Result<bool> {
    let property = json!({ "path": "/machine", "property": "confidential-guest-support" });
    match qmp.execute("qom-get", property) {
        Ok(object) => Ok(object.as_str().is_none_or(|path| !path.is_empty())),
        // Before QEMU 6.0 there was another property, of SEV alone.
        Err(error) if error.kind() == ErrorKind::Invalid => {
            let old = json!({ "path": "/machine", "property": "memory-encryption" });
            let object = qmp.execute("qom-get", old)?;
            Ok(object.as_str().is_some_and(|id| !id.is_empty()))
        }
        Err(error) => Err(error),
    }
}

/// The thread of a vCPU, as QEMU knows it, and the number that QEMU gave it in KVM, which is that of its APIC.
fn identify(qmp: &Qmp, vcpu: VcpuId) -> Result<(u32, u32)> {
    let unknown =
        |what: &str| Error::new(ErrorKind::NotFound, OP, format!("QEMU tells no {what} of vCPU {}", vcpu.0));
    let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
    let all = qmp.execute("query-cpus-fast", Value::Null)?;
    let is_it = |one: &&Value| one.get("cpu-index").and_then(number) == Some(vcpu.0);
    let one = all.as_array().into_iter().flatten().find(is_it).ok_or_else(|| unknown("thread"))?;
    let thread = one.get("thread-id").and_then(number).ok_or_else(|| unknown("thread"))?;
    let path = one.get("qom-path").and_then(Value::as_str).ok_or_else(|| unknown("path"))?;
    let apic = qmp.execute("qom-get", json!({ "path": path, "property": "apic-id" }))?;
    Ok((thread, number(&apic).ok_or_else(|| unknown("APIC"))?))
}

/// The thread that the process itself calls `thread`: it may live in another pid namespace than we do.
fn thread_here(pid: u32, thread: u32) -> Option<u32> {
    fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten().find_map(|entry| {
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        if innermost(&status)? == thread { entry.file_name().to_str()?.parse().ok() } else { None }
    })
}

/// The last number of the line `NSpid:`, which is the thread's in its own namespace (proc_pid_status(5)).
fn innermost(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().last()?.parse().ok()
}

/// A copy of the descriptor that the process has of vCPU `number`.
fn descriptor(pid: u32, number: u32) -> io::Result<OwnedFd> {
    let name = format!("anon_inode:kvm-vcpu:{number}");
    let is_it =
        |entry: &fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == &*name);
    let entry = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().find(is_it);
    let fd: Option<i32> = entry.and_then(|entry| entry.file_name().to_str()?.parse().ok());
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    let process = pidfd_open(Pid::from_raw(pid.cast_signed()).ok_or_else(missing)?, PidfdFlags::empty())?;
    let copy = pidfd_getfd(process, fd.ok_or_else(missing)?, PidfdGetfdFlags::empty())?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    /// Whether a QEMU that answers so has an encrypted guest.
    fn encrypted(answers: &'static [&'static str]) -> Result<bool> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            theirs.write_all(b"{\"QMP\": {}}\n").unwrap();
            let requests = BufReader::new(theirs.try_clone().unwrap()).lines();
            for (index, (request, answer)) in
                requests.zip([&r#""return": {}"#].into_iter().chain(answers)).enumerate()
            {
                request.unwrap();
                theirs.write_all(format!("{{ {answer}, \"id\": {} }}\n", index + 1).as_bytes()).unwrap();
            }
        });
        is_encrypted(&Qmp::over(ours, Path::new("test")).unwrap())
    }

    #[test]
    fn an_encrypted_guest_is_never_asked_for_registers() {
        const NO_SUCH: &str = r#""error": { "class": "GenericError", "desc": "not found" }"#;
        assert!(!encrypted(&[r#""return": """#]).unwrap());
        assert!(encrypted(&[r#""return": "/objects/sev0""#]).unwrap());
        assert!(!encrypted(&[NO_SUCH, r#""return": """#]).unwrap());
        assert!(encrypted(&[NO_SUCH, r#""return": "sev0""#]).unwrap());
        assert!(encrypted(&[NO_SUCH, NO_SUCH]).is_err());
    }

    #[test]
    fn threads_are_known_by_their_own_number() {
        assert_eq!(innermost("Name:\tqemu\nNSpid:\t4242\t17\n"), Some(17));
        assert_eq!(innermost("Name:\tqemu\n"), None);
        let me = std::process::id();
        assert_eq!(thread_here(me, me), Some(me));
        assert_eq!(thread_here(me, u32::MAX), None);
    }

    #[test]
    fn a_process_without_vcpus_has_no_descriptor_of_one() {
        assert_eq!(descriptor(std::process::id(), 0).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
