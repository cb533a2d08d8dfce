//! Domains, and whether they run.

use std::io::Result;
use std::mem::zeroed;

use xenctrl_sys as c;

use super::handle::Handle;
use super::{Xen, done};
use crate::hypervisor::{Domain, DomainInfo, Ran};

/// How many are asked for at once.
const BATCH: usize = 64;

fn list(handle: &Handle, first: u32, most: usize) -> Result<Vec<DomainInfo>> {
    // SAFETY: the structure is plain numbers.
    let blank: c::xc_domaininfo_t = unsafe { zeroed() };
    let mut found = vec![blank; most];
    // SAFETY: there is room for as many as are asked for.
    let code = unsafe { c::xc_domain_getinfolist(handle.raw(), first, most as u32, found.as_mut_ptr()) };
    found.truncate(done(code)? as usize);
    Ok(found.iter().map(info).collect())
}

fn info(found: &c::xc_domaininfo_t) -> DomainInfo {
    let is = |flag| found.flags & flag != 0;
    DomainInfo {
        domid: u32::from(found.domain),
        hvm: is(c::XEN_DOMINF_hvm_guest),
        dying: is(c::XEN_DOMINF_dying),
        shutdown: is(c::XEN_DOMINF_shutdown),
        paused: is(c::XEN_DOMINF_paused),
        // XEN_INVALID_MAX_VCPU_ID, of a domain that has none yet, becomes 0.
        vcpus: found.max_vcpu_id.wrapping_add(1),
        pages: found.tot_pages,
        max_pages: found.max_pages,
        devices: found.arch_config.emulation_flags,
        shared_info: found.shared_info_frame,
    }
}

/// All domains of the host.
pub fn all(handle: &Handle) -> Result<Vec<DomainInfo>> {
    let mut domains: Vec<DomainInfo> = Vec::new();
    loop {
        let first = domains.last().map_or(0, |last| last.domid + 1);
        let more = list(handle, first, BATCH)?;
        let end = more.len() < BATCH;
        domains.extend(more);
        if end {
            return Ok(domains);
        }
    }
}

impl Domain for Xen {
    fn info(&self) -> Result<Option<DomainInfo>> {
        // It answers with the first domain of this number or a higher one.
        let found = list(&self.handle, self.domid, 1)?;
        Ok(found.into_iter().find(|info| info.domid == self.domid))
    }

    fn pause(&self) -> Result<()> {
        // SAFETY: the handle is open.
        done(unsafe { c::xc_domain_pause(self.handle.raw(), self.domid) }).map(drop)
    }

    fn unpause(&self) -> Result<()> {
        // SAFETY: the handle is open.
        done(unsafe { c::xc_domain_unpause(self.handle.raw(), self.domid) }).map(drop)
    }

    fn pause_vcpu(&self, vcpu: u32) -> Result<()> {
        self.call.pause_vcpu(self.domid, vcpu, true)
    }

    fn unpause_vcpu(&self, vcpu: u32) -> Result<()> {
        self.call.pause_vcpu(self.domid, vcpu, false)
    }

    fn single_step(&self, vcpu: u32, on: bool) -> Result<()> {
        let op =
            if on { c::XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_ON } else { c::XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_OFF };
        // SAFETY: the handle is open.
        done(unsafe { c::xc_domain_debug_control(self.handle.raw(), self.domid, op, vcpu) }).map(drop)
    }

    fn ran(&self, vcpu: u32) -> Result<Ran> {
        // SAFETY: the structure is plain numbers.
        let mut info: c::xc_vcpuinfo_t = unsafe { zeroed() };
        let at = &raw mut info;
        // SAFETY: the structure has room.
        done(unsafe { c::xc_vcpu_getinfo(self.handle.raw(), self.domid, vcpu, at) })?;
        Ok(match (info.blocked, info.running) {
            (0, 0) => Ran::For(info.cpu_time),
            (0, _) => Ran::On,
            _ => Ran::Halted,
        })
    }
}
