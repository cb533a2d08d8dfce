//! A running vCPU's registers without a stop of the VM: KVM writes them into the page that it shares with QEMU, each time
//! the vCPU leaves the guest (KVM_CAP_SYNC_REGS). We map that page too, and make the vCPU leave as QEMU does it: by SIGUSR1.

mod find;
mod run;

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use vmtree_api::VcpuId;
use vmtree_api::x86::Registers;

use crate::qmp::Qmp;
use crate::sys::run::kick;
use run::Run;

/// How long the pages are kept that nobody uses. They keep the VM's KVM part from going when QEMU ends.
const IDLE: Duration = Duration::from_secs(3);

/// How long this way rests after a vCPU did not answer: the VM stands still, or QEMU has it out of KVM.
const REST: Duration = Duration::from_secs(1);

/// How long after it could not be opened.
const LONG_REST: Duration = Duration::from_secs(10);

/// How long a vCPU is waited for.
const PATIENCE: Duration = Duration::from_millis(50);

/// The vCPUs of a QEMU under KVM, opened when they are needed.
#[derive(Debug)]
pub struct Vcpus {
    pid: u32,
    open: HashMap<u32, Vcpu>,
    used: Instant,
    /// Not tried before this.
    rests: Instant,
}

#[derive(Debug)]
struct Vcpu {
    tid: u32,
    run: Run,
}

impl Vcpus {
    /// Those of QEMU process `pid`.
    #[must_use]
    pub fn new(pid: u32) -> Self {
        let now = Instant::now();
        Self { pid, open: HashMap::new(), used: now, rests: now }
    }

    /// The registers of a running vCPU at one instant, all but DR0 to DR7 and MSRs; `None` where the VM must be stopped
    /// to have them. `qmp` is asked for at the first use of a vCPU.
    pub fn read(
        &mut self,
        vcpu: VcpuId,
        qmp: impl FnOnce() -> Option<std::sync::Arc<Qmp>>,
    ) -> Option<Registers> {
        let now = Instant::now();
        if now < self.rests {
            return None;
        }
        self.used = now;
        if !self.open.contains_key(&vcpu.0) {
            match find::vcpu(self.pid, &*qmp()?, vcpu) {
                Ok(found) => self.open.insert(vcpu.0, found),
                Err(error) => {
                    log::debug!("vCPU {} is read by stopping the VM: {error}", vcpu.0);
                    self.rests = now + LONG_REST;
                    return None;
                }
            };
        }
        let Vcpu { tid, run } = self.open.get(&vcpu.0)?;
        let registers =
            catches(self.pid).then(|| run.read(|| kick(self.pid, *tid), now + PATIENCE)).flatten();
        if registers.is_none() {
            // Its thread may have gone.
            self.open.remove(&vcpu.0);
            self.rests = Instant::now() + REST;
        }
        registers
    }

    /// Whether some are open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Closes those that nobody has used for a while.
    pub fn close_if_idle(&mut self) {
        if self.used.elapsed() >= IDLE {
            self.open.clear();
        }
    }
}

/// Whether the process has a handler for SIGUSR1, as QEMU has under KVM: else the signal would end it.
fn catches(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    caught(&status) >> (libc::SIGUSR1 - 1) & 1 == 1
}

fn caught(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_a_handler_is_never_signalled() {
        assert_eq!(caught("SigIgn:\t0000000000001004\nSigCgt:\t0000000100004243\n"), 0x1_0000_4243);
        assert_eq!(caught("SigCgt:\tx\n"), 0);
        assert!(!catches(std::process::id()) && !catches(u32::MAX));
    }

    #[test]
    fn what_is_no_qemu_is_left_alone_and_not_tried_again_at_once() {
        let mut vcpus = Vcpus::new(std::process::id());
        assert!(vcpus.read(VcpuId(0), || None).is_none());
        assert!(!vcpus.is_open());
    }
}
