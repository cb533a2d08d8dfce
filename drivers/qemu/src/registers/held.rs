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
        let at = holds.at(vcpu)?;
        let by_agent = holds.read(vcpu)?;
        let flags = wanted.is_none_or(|wanted| wanted.contains(&Reg::Rflags.id()));
        let read = by_agent.and_then(|set| match wanted {
            Some(wanted) if wanted.iter().all(|id| agent::is_had(*id)) => Ok(set),
            _ if flags && at.monitor == Monitor::NoFlags => Err(no_flags()),
            _ => {
                holds.refuse_waiting("read registers")?;
                self.completed(vcpu, &set)
            }
        });
        // One that was let go meanwhile has other registers now.
        (holds.at(vcpu) == Some(at)).then_some(read)
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
