//! Orders to the guest, and what is undone when a check ends.

use std::time::{Duration, Instant};

use vmtree_guest::mailbox::{Counter, Op, counter_of, slot, slot_of};
use vmtree_guest::{Counters, Outcome};

use crate::Checked;
use crate::regs::Regs;
use crate::vm::{Paused, Vm};

/// How long a loop is to go on in which a vCPU is to be caught: the speed was measured while the host did other things.
pub const CATCHABLE: Duration = Duration::from_secs(3);

/// The value of CR8 that holds every interrupt of the guest back.
const HOLD_ALL: u64 = 15;

/// No background traffic until this is dropped.
pub struct Quiet<'a>(&'a Vm);

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        let _ = self.0.mailbox.background(true, self.0.patience);
    }
}

/// No interrupt on a vCPU until this is dropped: it polls for orders without a pause.
pub struct Masked<'a>(&'a Vm, u64);

impl Drop for Masked<'_> {
    fn drop(&mut self) {
        let _ = self.0.order(self.1, Op::WriteCr8, &[1, 0]);
    }
}

impl Vm {
    /// Has an order performed and returns its first result.
    pub(crate) fn order(&self, vcpu: u64, op: Op, args: &[u64]) -> Result<u64, String> {
        match self.outcome(vcpu, op, args)? {
            Outcome::Done([first, ..]) => Ok(first),
            other => Err(format!("order {} {args:x?} of vCPU {vcpu} ended with {other:x?}", op.name())),
        }
    }

    /// Has an order performed, which may fault.
    pub(crate) fn outcome(&self, vcpu: u64, op: Op, args: &[u64]) -> Result<Outcome, String> {
        self.mailbox.order(vcpu, op, args, self.patience).map_err(|error| error.to_string())
    }

    /// Posts an order and waits until the guest has begun it.
    pub(crate) fn begin(&self, vcpu: u64, op: Op, args: &[u64]) -> Result<u64, String> {
        let seq = self.mailbox.post(vcpu, op, args).map_err(|error| error.to_string())?;
        let what = format!("vCPU {vcpu} begins the order {}", op.name());
        self.until(&what, || Ok(self.word(slot_of(vcpu) + slot::BEGUN)? == seq))?;
        Ok(seq)
    }

    /// Whether a posted order is done.
    pub(crate) fn done(&self, vcpu: u64, seq: u64) -> Result<bool, String> {
        Ok(self.word(slot_of(vcpu) + slot::ACK)? == seq)
    }

    /// Waits for the end of a posted order, which may not fault.
    pub(crate) fn finish(&self, vcpu: u64, op: Op, seq: u64) -> Checked {
        let outcome =
            self.mailbox.outcome(vcpu, op, seq, self.patience).map_err(|error| error.to_string())?;
        ensure!(matches!(outcome, Outcome::Done(_)), "order {} ended with {outcome:x?}", op.name());
        Ok(())
    }

    /// All counters of a vCPU.
    pub(crate) fn counters(&self, vcpu: u64) -> Result<Counters, String> {
        self.mailbox.counters(vcpu).map_err(|error| error.to_string())
    }

    /// One counter of a vCPU.
    pub(crate) fn counter(&self, vcpu: u64, counter: Counter) -> Result<u64, String> {
        self.word(counter_of(vcpu, counter))
    }

    /// Stops the background traffic of all vCPUs.
    pub(crate) fn quiet(&self) -> Result<Quiet<'_>, String> {
        let guard = Quiet(self);
        self.mailbox.background(false, self.patience).map_err(|error| error.to_string())?;
        Ok(guard)
    }

    /// Holds all interrupts of a vCPU back.
    pub(crate) fn masked(&self, vcpu: u64) -> Result<Masked<'_>, String> {
        let guard = Masked(self, vcpu);
        self.order(vcpu, Op::WriteCr8, &[1, HOLD_ALL])?;
        Ok(guard)
    }

    /// How many rounds of an ordered spin take about this long.
    pub(crate) fn rounds(&self, time: Duration) -> Result<u64, String> {
        if self.speed.get().is_none() {
            let _ = self.speed.set(self.measure()?);
        }
        Ok(self.speed.get().copied().unwrap_or(1) * time.as_millis() as u64)
    }

    fn measure(&self) -> Result<u64, String> {
        let taken = |rounds| {
            let begun = Instant::now();
            self.order(0, Op::Spin, &[rounds]).map(|_| begun.elapsed())
        };
        // An order takes up to a tick to be seen, and much longer where the VM's host is emulated itself.
        let seen = taken(1)?.max(taken(1)?).max(taken(1)?);
        let mut rounds = 10_000;
        loop {
            let time = taken(rounds)?;
            if time >= Duration::from_millis(100) + 4 * seen || rounds > 1 << 40 {
                let spun = time.saturating_sub(seen).as_millis() as u64;
                return Ok((rounds / spun.max(1)).max(1));
            }
            rounds *= 4;
        }
    }

    /// Lets a vCPU that is paused in an ordered loop leave it soon, where registers can be written, and waits for that.
    pub(crate) fn leave(&self, paused: Paused<'_>, vcpu: u64, op: Op, seq: u64) -> Checked {
        if self.writable(vcpu, "r12") {
            self.set(vcpu, "r12=1")?;
        }
        drop(paused);
        self.finish(vcpu, op, seq)
    }

    /// Pauses while a vCPU is where `there` says; the VM goes on in between.
    pub(crate) fn catch(
        &self,
        vcpu: u64,
        what: &str,
        there: impl Fn(&Regs) -> Result<bool, String>,
    ) -> Result<(Paused<'_>, Regs), String> {
        let begun = Instant::now();
        let mut last = 0;
        while begun.elapsed() < self.patience {
            let paused = self.pause()?;
            let regs = self.regs(vcpu)?;
            if there(&regs)? {
                return Ok((paused, regs));
            }
            last = regs.get("rip")?;
            drop(paused);
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(format!("vCPU {vcpu} was never paused {what}; the last rip was {last:#x}"))
    }
}
