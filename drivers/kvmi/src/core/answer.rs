//! Verdicts on held events, as KVMI takes them.

use vmtree_api::events::{Inject, Verdict};
use vmtree_api::{Error, ErrorKind, RegId, RegValue, Result, ViewId};

use super::{Core, Stepping, Stop, Why};
use crate::port::{General, Kind, Reply, Told};
use crate::table::{self, CPUID, RIP};

const OP: &str = "answer";

fn refuse<T>(kind: ErrorKind, why: impl Into<String>) -> Result<T> {
    Err(Error::new(kind, OP, why))
}

fn unsupported<T>(why: &str) -> Result<T> {
    refuse(ErrorKind::Unsupported, why)
}

/// Whether the write is what KVM carries out when it is answered.
fn is_write(kind: &Kind) -> bool {
    matches!(kind, Kind::Cr { .. } | Kind::Msr { .. })
}

/// The old and the new value of a write.
fn values(kind: &Kind) -> Option<(u64, u64)> {
    match *kind {
        Kind::Cr { old, new, .. } | Kind::Msr { old, new, .. } => Some((old, new)),
        _ => None,
    }
}

/// An exception that a VM entry takes: vector, error code and address.
fn exception(what: Inject) -> Result<(u8, u32, u64)> {
    what.check(OP)?;
    match what {
        Inject::PageFault { address, error } => Ok((Inject::PAGE_FAULT, error, address.0)),
        Inject::Exception { vector, error } => Ok((vector, error.unwrap_or(0), 0)),
        Inject::Interrupt { .. } | Inject::Nmi => {
            unsupported("KVMI injects exceptions alone, no interrupts and NMIs")
        }
    }
}

impl Core {
    /// Lets a held vCPU go with this verdict.
    ///
    /// # Errors
    /// As [`vmtree_api::events::Held::answer`]; it is then held as before.
    pub fn answer(&mut self, index: usize, serial: u64, verdict: &Verdict) -> Result<()> {
        let at = self.vcpus.get(index).and_then(|vcpu| vcpu.at.as_ref());
        let Some(Stop { told, why: Why::Held(is) }) = at else {
            return refuse(ErrorKind::Stale, "the event is no longer waiting for an answer");
        };
        if *is != serial {
            return refuse(ErrorKind::Stale, "the event is no longer waiting for an answer");
        }
        let told = told.clone();
        match verdict {
            Verdict::Continue => self.end(index, &told, Reply::Continue),
            Verdict::Deny => self.deny(index, &told),
            Verdict::Value(value) => self.value(index, &told, *value),
            Verdict::Set(changes) => self.set(index, &told, changes),
            Verdict::Step(view) => self.step_on(index, &told, *view),
            Verdict::View(view) => {
                self.put_on(index, *view)?;
                let fault = matches!(told.kind, Kind::Fault { .. });
                self.end(index, &told, if fault { Reply::Retry } else { Reply::Continue })
            }
            Verdict::Inject(what) => self.inject(index, &told, *what),
        }
    }

    /// The vCPU goes on.
    fn end(&mut self, index: usize, told: &Told, reply: Reply) -> Result<()> {
        // RIP that was set beside the answer says where the vCPU goes on, and what it was stopped at is dropped.
        let rip = told.raw.general.get(RIP);
        let moved = self.pending(index).is_some_and(|general| general.get(RIP) != rip);
        let moved = moved && !is_write(&told.kind) && reply == Reply::Continue;
        self.go(index, if moved { Reply::Retry } else { reply })
    }

    /// Whether the general registers of a standing vCPU may become these.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for another RIP where KVM is about to carry out a write.
    pub fn may_become(&self, index: usize, after: &General) -> Result<()> {
        let at = self.vcpus.get(index).and_then(|vcpu| vcpu.at.as_ref());
        let write = at.filter(|stop| is_write(&stop.told.kind));
        if write.is_some_and(|stop| stop.told.raw.general.get(RIP) != after.get(RIP)) {
            return unsupported("KVMI carries the write out and goes on behind it: rip can't be set here");
        }
        Ok(())
    }

    /// The registers that the vCPU goes on with, as far as they are set already.
    fn general(&self, index: usize, told: &Told) -> General {
        self.pending(index).unwrap_or(told.raw.general)
    }

    fn skip(&mut self, index: usize, told: &Told, bytes: u8, result: Option<[u32; 4]>) -> Result<()> {
        let mut general = self.general(index, told);
        if let Some(rip) = general.get_mut(RIP) {
            *rip = rip.wrapping_add(u64::from(bytes));
        }
        for (place, word) in CPUID.into_iter().zip(result.into_iter().flatten()) {
            if let Some(slot) = general.get_mut(place) {
                *slot = u64::from(word);
            }
        }
        self.set_general(index, &general)?;
        self.go(index, Reply::Retry)
    }

    fn deny(&mut self, index: usize, told: &Told) -> Result<()> {
        match (&told.kind, values(&told.kind)) {
            (_, Some((old, _))) => self.go(index, Reply::Value(old)),
            (Kind::Breakpoint { len, .. }, _) => self.skip(index, told, *len, None),
            (Kind::Cpuid { .. }, _) => refuse(ErrorKind::Invalid, "it can't be denied: it is done"),
            _ => unsupported("KVMI can't drop it; capabilities says why"),
        }
    }

    fn value(&mut self, index: usize, told: &Told, value: u128) -> Result<()> {
        if let Kind::Cpuid { len, .. } = told.kind {
            let words = [0, 32, 64, 96].map(|shift| (value >> shift) as u32);
            return self.skip(index, told, len, Some(words));
        }
        if values(&told.kind).is_none() {
            let fault = matches!(told.kind, Kind::Fault { .. });
            let kind = if fault { ErrorKind::Unsupported } else { ErrorKind::Invalid };
            return refuse(kind, "it takes no value; capabilities says why");
        }
        match u64::try_from(value) {
            Ok(value) => self.go(index, Reply::Value(value)),
            Err(_) => refuse(ErrorKind::OutOfRange, format!("{value:#x} does not fit in 8 bytes")),
        }
    }

    fn set(&mut self, index: usize, told: &Told, changes: &[(RegId, RegValue)]) -> Result<()> {
        let before = self.general(index, told);
        let after = table::changed(&before, changes)?;
        self.may_become(index, &after)?;
        if after != before {
            self.set_general(index, &after)?;
        }
        self.end(index, told, Reply::Continue)
    }

    fn step_on(&mut self, index: usize, told: &Told, view: Option<ViewId>) -> Result<()> {
        let now = self.current.lock().get(index).copied().unwrap_or_default();
        let other = view.filter(|view| *view != now);
        // What KVM carries out itself needs no step, and touches no memory.
        let (Some(view), false) = (other, is_write(&told.kind)) else {
            return self.end(index, told, Reply::Continue);
        };
        if matches!(told.kind, Kind::Descriptor { .. }) {
            return unsupported("KVMI carries it out itself, on the view that the vCPU has");
        }
        self.put_on(index, view)?;
        if let Err(error) = self.start_stepping(index) {
            self.put_on(index, now)?;
            return Err(error);
        }
        if let Some(vcpu) = self.vcpu(index) {
            vcpu.stepping = Some(Stepping::Back(now));
        }
        self.go(index, Reply::Retry)
    }

    fn inject(&mut self, index: usize, told: &Told, what: Inject) -> Result<()> {
        let (vector, error, address) = exception(what)?;
        if is_write(&told.kind) {
            return unsupported("KVMI carries the write out first, so nothing can come in its place");
        }
        let answer = self.port.inject(told.vcpu, vector, error, address);
        self.done(OP, answer)?;
        self.end(index, told, Reply::Retry)
    }
}
