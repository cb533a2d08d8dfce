//! Acts performed: ordered, waited for, undone.

use std::time::Duration;

use vmtree_guest::Outcome;
use vmtree_guest::mailbox::{Op, slot, slot_of};

use crate::Checked;
use crate::acts::{Act, Order};
use crate::vm::Vm;

/// An order under way.
pub struct Posted {
    vcpu: u64,
    op: Op,
    seq: u64,
}

impl Posted {
    /// Its number.
    pub fn seq(&self) -> u64 {
        self.seq
    }
}

impl Vm {
    /// Gives an order without waiting for its end.
    pub(crate) fn post(&self, vcpu: u64, (op, args): &Order) -> Result<Posted, String> {
        let seq = self.mailbox.post(vcpu, *op, args).map_err(|error| error.to_string())?;
        Ok(Posted { vcpu, op: *op, seq })
    }

    /// Waits until the guest has begun a posted order.
    pub(crate) fn begun(&self, posted: &Posted) -> Checked {
        let what = format!("vCPU {} begins the order {}", posted.vcpu, posted.op.name());
        self.until(&what, || Ok(self.word(slot_of(posted.vcpu) + slot::BEGUN)? == posted.seq))
    }

    /// Fails where the guest went on with a posted order; it gets the time to do so.
    pub(crate) fn stands(&self, posted: &Posted, what: &str) -> Checked {
        std::thread::sleep(Duration::from_millis(20));
        ensure!(!self.done(posted.vcpu, posted.seq)?, "vCPU {} went on {what}", posted.vcpu);
        Ok(())
    }

    /// How a posted order ends.
    pub(crate) fn end(&self, posted: &Posted) -> Result<Outcome, String> {
        let Posted { vcpu, op, seq } = *posted;
        self.mailbox.outcome(vcpu, op, seq, self.patience).map_err(|error| error.to_string())
    }

    /// Orders what an act needs before.
    pub(crate) fn prepare(&self, act: &Act) -> Checked {
        act.before.iter().try_for_each(|(op, args)| self.order(act.vcpu, *op, args).map(drop))
    }

    /// Puts back what an act changed.
    pub(crate) fn restore(&self, act: &Act) -> Checked {
        for (op, args) in &act.after {
            let mut args = args.clone();
            if let (Op::WriteCr0 | Op::WriteCr4, [_, value], "cr0" | "cr4") =
                (*op, args.as_mut_slice(), act.kind)
            {
                let number = if *op == Op::WriteCr0 { 0 } else { 4 };
                *value ^= self.order(act.vcpu, Op::ReadCr, &[1, number])?;
            }
            self.order(act.vcpu, *op, &args)?;
        }
        Ok(())
    }

    /// Performs an act from its preparation to its undoing; what the order itself ends with.
    pub(crate) fn perform(&self, act: &Act) -> Result<Outcome, String> {
        self.prepare(act)?;
        let outcome = self.outcome(act.vcpu, act.order.0, &act.order.1)?;
        self.restore(act)?;
        Ok(outcome)
    }

    /// What the probe of an act reads.
    pub(crate) fn probe(&self, act: &Act) -> Result<u64, String> {
        let (op, args) = act.probe.as_ref().ok_or_else(|| format!("{} has no probe", act.name()))?;
        self.order(act.vcpu, *op, args)
    }
}
