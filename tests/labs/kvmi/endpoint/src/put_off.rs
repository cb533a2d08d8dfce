//! Interrupts while a vCPU is single-stepped: a kernel of KVM-VMI injects none then, and delivers them afterwards. The built-in machine
//! would, so they are swallowed there and injected later.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use vmtree_api::events::{Detail, Held, Inject, InterruptType, Verdict};
use vmtree_api::x86::{self, PagingMode};
use vmtree_api::{Driver, ErrorKind, Gpa, Gva, VcpuId};

use crate::raise::registers;

const HLT: u8 = 0xf4;

/// What a vCPU has still to get.
#[derive(Debug, Default)]
pub struct PutOff {
    vectors: BTreeSet<u8>,
    nmi: bool,
    /// The machine tells of a step for what was swallowed, in which no instruction was done.
    step: bool,
}

/// Whether the vCPU was halted: it stands behind hlt. Then the interrupt is what it goes on by.
fn was_halted(driver: &dyn Driver, vcpu: usize) -> bool {
    let regs = registers(driver, vcpu);
    let read = |gpa: Gpa| {
        let mut entry = [0; 8];
        driver.memory().read(gpa, &mut entry).map(|_| u64::from_le_bytes(entry))
    };
    let walked = x86::walk(&PagingMode::from(&regs), Gva(regs.rip.wrapping_sub(1)), read);
    let Ok(Ok(walk)) = walked else { return false };
    let mut byte = [0];
    driver.memory().read(walk.gpa, &mut byte).is_ok() && byte == [HLT]
}

impl PutOff {
    /// Takes an interrupt that is about to be delivered to a vCPU that is stepped.
    pub fn take(&mut self, driver: &dyn Driver, held: Held) {
        let Detail::Interrupt { vector, kind, .. } = held.event().detail else { return };
        if was_halted(driver, held.event().vcpu.0 as usize) {
            return;
        }
        let vector = match (kind, vector) {
            (InterruptType::Nmi, _) => None,
            (InterruptType::External, Some(vector)) => Some(vector),
            _ => return,
        };
        if held.answer(&Verdict::Deny).is_err() {
            return;
        }
        self.step = true;
        match vector {
            Some(vector) => drop(self.vectors.insert(vector)),
            None => self.nmi = true,
        }
    }

    /// Whether a step that the machine tells of is that of a swallowed interrupt.
    pub fn was_step(&mut self) -> bool {
        std::mem::take(&mut self.step)
    }

    /// Delivers one of them, if the vCPU takes one now. Whether there are more.
    pub fn deliver(&mut self, driver: &dyn Driver, vcpu: u32) -> bool {
        let what = match (self.nmi, self.vectors.last()) {
            (true, _) => Inject::Nmi,
            (false, Some(vector)) => Inject::Interrupt { vector: *vector },
            (false, None) => return false,
        };
        let Ok(injection) = driver.injection() else { return false };
        match injection.inject(VcpuId(vcpu), what) {
            Ok(()) if self.nmi => self.nmi = false,
            Ok(()) => drop(self.vectors.pop_last()),
            Err(error) => return error.kind() == ErrorKind::Busy,
        }
        true
    }

    /// Delivers all of them.
    pub fn deliver_all(&mut self, driver: &dyn Driver, vcpu: u32) {
        // A vCPU that takes none for so long never will.
        for _ in 0..500 {
            if !self.deliver(driver, vcpu) {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}
