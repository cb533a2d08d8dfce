//! Registers of a vCPU that is held at an event: from the agent, and from the monitor, which needs no stop then as the vCPU
//! stands still. The arithmetic flags are the monitor's, where it has them.

use vmtree_api::x86::Reg;
use vmtree_api::{Error, ErrorKind, RegId, RegisterSet, Result, VcpuId};

use super::{Access, snapshot};
use crate::agent::{self, Monitor};

impl Access {
    /// The registers of a held vCPU, all or those `wanted`; `None` for one that is not held.
    pub(super) fn read_held(&self, vcpu: VcpuId, wanted: Option<&[RegId]>) -> Option<Result<RegisterSet>> {
        let holds = self.holds.as_ref()?;
        let by_agent = holds.read(vcpu)?;
        let flags = wanted.is_none_or(|wanted| wanted.contains(&Reg::Rflags.id()));
        Some(by_agent.and_then(|set| match (wanted, holds.monitor(vcpu)) {
            (Some(wanted), _) if wanted.iter().all(|id| agent::is_had(*id)) => Ok(set),
            (_, Some(Monitor::Waits)) => Err(waits()),
            (_, Some(Monitor::NoFlags)) if flags => Err(no_flags()),
            _ => self.completed(vcpu, &set),
        }))
    }

    /// With what only the monitor shows.
    fn completed(&self, vcpu: VcpuId, by_agent: &RegisterSet) -> Result<RegisterSet> {
        let qmp = self.inner.control.lock().settle()?;
        let mut set = snapshot::take(None, &qmp, vcpu)?;
        for offer in self.inner.offers.iter().filter(|offer| agent::is_had(offer.id)) {
            if let Some(value) = by_agent.get(offer.id) {
                set.set(offer.id, value)?;
            }
        }
        Ok(set)
    }
}

fn no_flags() -> Error {
    let why = "QEMU has the arithmetic flags of this vCPU in pieces at this event, so rflags and all registers at once can't be \
               had; read others one by one, or answer the event first";
    Error::new(ErrorKind::Busy, "read registers", why)
}

fn waits() -> Error {
    let why = "at an interrupt QEMU's monitor waits for the verdict, and this register is had by it alone; answer the event first";
    Error::new(ErrorKind::Busy, "read registers", why)
}
