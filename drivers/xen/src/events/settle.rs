//! The end of the ring: given back once nothing needs it, with nothing lost that Xen was to do for a vCPU.

use std::thread;
use std::time::{Duration, Instant};

use vmtree_api::x86::Reg;
use vmtree_api::{ErrorKind, RegValue};

use super::engine::Answered;
use super::wire::{Cause, control};
use crate::again::{again, again_whole};
use crate::hypervisor::{Intercept, Ran};
use crate::world::{World, note};

const OP: &str = "watch";

/// How long a vCPU that was answered may take to go on before the ring is given back.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long one instruction may take for which a frame's rights are lifted.
const LIFTED: Duration = Duration::from_millis(200);
/// The bit of a write of CR3 that is no part of it (Intel SDM volume 3A, 4.10.4.1).
const NO_FLUSH: u64 = 1 << 63;

impl World {
    /// Gives the ring back, if nothing needs it any more.
    pub fn settle_ring(&mut self) {
        if self.events.lift.is_some_and(|lift| lift.since.elapsed() > LIFTED) {
            self.finish_lift();
        }
        self.settle_windows();
        self.sweep_dry();
        self.settle_views();
        let needed = !self.events.armed.is_empty() || !self.events.held.is_empty() || self.needs_steps();
        let needed = needed || self.events.windows.any() || self.waits_for_out();
        if !self.events.taken || needed || !self.has_settled() {
            return;
        }
        self.give_ring_back();
    }

    /// Forgets the answers to vCPUs that have gone on: Xen has done all for them.
    fn drop_gone_on(&mut self) {
        let xen = &*self.xen;
        self.events.answered.retain(|vcpu, answered| match (xen.ran(*vcpu), answered.ran) {
            (Ok(Ran::For(now)), Some(then)) => now == then,
            (Ok(Ran::On | Ran::Halted), Some(_)) => false,
            // One that can't be told of has had the time to.
            _ => answered.at.elapsed() < PATIENCE,
        });
    }

    /// Whether all vCPUs that were answered have gone on, or had the time to: what they have yet to do goes with the ring.
    fn has_settled(&mut self) -> bool {
        self.drop_gone_on();
        self.events.answered.values().all(|answered| answered.at.elapsed() >= PATIENCE)
    }

    /// Waits until all have gone on, or for a while: a paused domain does not go on.
    fn settle(&mut self) {
        let since = Instant::now();
        loop {
            self.drop_gone_on();
            if self.events.answered.is_empty() || since.elapsed() >= PATIENCE {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Gives the ring back, with what it has yet to do done.
    pub fn give_ring_back(&mut self) {
        const OP: &str = "give the event ring back";
        let since = Instant::now();
        while (self.events.windows.any() || !self.events.sent.is_empty()) && since.elapsed() < PATIENCE {
            self.take_events();
            thread::sleep(Duration::from_millis(1));
        }
        let all: Vec<Intercept> = self.events.set.iter().copied().collect();
        for what in all {
            if let Err(error) = self.set_intercept(what, false) {
                log::debug!("{error}");
            }
        }
        // What was raised before is answered, and done by the vCPUs.
        while self.take_events() {}
        self.settle();
        let given = self.paused(OP, |world| {
            while world.take_events() {}
            world.drop_gone_on();
            again(|| world.xen.give_back()).map_err(|error| world.refused(OP, "Xen keeps it", error))?;
            world.events.taken = false;
            world.events.holds_writes = false;
            world.do_lost();
            world.end_outs();
            Ok(())
        });
        match given {
            Ok(()) => self.undo.done(note::RING),
            Err(error) if error.kind() == ErrorKind::Gone => {}
            Err(error) => log::error!("{error}"),
        }
    }

    /// Does what Xen was to do for vCPUs that have not gone on, as it forgot that with the ring.
    fn do_lost(&mut self) {
        for (vcpu, Answered { registers, write, .. }) in std::mem::take(&mut self.events.answered) {
            let mut changes = Vec::new();
            if let Some(general) = registers {
                let regs = [
                    Reg::Rax,
                    Reg::Rcx,
                    Reg::Rdx,
                    Reg::Rbx,
                    Reg::Rsp,
                    Reg::Rbp,
                    Reg::Rsi,
                    Reg::Rdi,
                    Reg::R8,
                    Reg::R9,
                    Reg::R10,
                    Reg::R11,
                    Reg::R12,
                    Reg::R13,
                    Reg::R14,
                    Reg::R15,
                ];
                changes.extend(
                    regs.iter().zip(general.gpr).map(|(reg, value)| (reg.id(), RegValue::Word(value))),
                );
                changes.push((Reg::Rflags.id(), RegValue::Word(general.rflags)));
                changes.push((Reg::Rip.id(), RegValue::Word(general.rip)));
            }
            let done = match write {
                Some(Cause::Msr { index, new, .. }) => again_whole(|| self.write_msr(OP, vcpu, index, new)),
                Some(Cause::Control { index, new, .. }) => {
                    let reg = match index {
                        control::CR0 => Reg::Cr0,
                        control::CR3 => Reg::Cr3,
                        _ => Reg::Cr4,
                    };
                    changes.push((reg.id(), RegValue::Word(new & !NO_FLUSH)));
                    Ok(())
                }
                _ => Ok(()),
            };
            if let Err(error) = done.and_then(|()| again_whole(|| self.put_registers(OP, vcpu, &changes))) {
                log::error!("what vCPU {vcpu} was about to do is lost: {error}");
            }
        }
    }
}
