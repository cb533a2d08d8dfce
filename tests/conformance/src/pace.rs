//! How fast the VM is to look at and to step, measured, so that no check takes a host in software for a broken one: a
//! nested VM may need a quarter of a second for a look that takes a millisecond elsewhere.

use std::cell::OnceCell;
use std::time::{Duration, Instant};

use crate::vm::Vm;

/// How long a check may look or step, in all, for one vCPU.
const LOOKING: Duration = Duration::from_secs(12);

/// How long one write may step. A mount answers within its `reply_timeout`, 5 s unless told otherwise.
const WRITE: Duration = Duration::from_secs(2);

/// How many looks a loop must outlast in which a running vCPU is looked at.
const LOOKS: u32 = 10;

/// What was measured.
#[derive(Default)]
pub struct Pace {
    look: OnceCell<Duration>,
    step: OnceCell<Duration>,
}

/// The median of five times that something takes; measured once.
fn measured(
    cell: &OnceCell<Duration>,
    mut once: impl FnMut() -> Result<(), String>,
) -> Result<Duration, String> {
    if let Some(time) = cell.get() {
        return Ok(*time);
    }
    let mut times = [Duration::ZERO; 5];
    for time in &mut times {
        let begun = Instant::now();
        once()?;
        *time = begun.elapsed();
    }
    times.sort();
    Ok(*cell.get_or_init(|| times[2]))
}

/// How many of `wanted` things that take `each` fit into `budget`, but at least one.
fn fitting(wanted: u64, each: Duration, budget: Duration) -> u64 {
    let fit = budget.as_nanos() / each.as_nanos().max(1);
    wanted.min(u64::try_from(fit).unwrap_or(u64::MAX)).max(1)
}

impl Vm {
    fn look(&self) -> Result<Duration, String> {
        measured(&self.pace.look, || self.regs(0).map(drop))
    }

    /// The VM must be paused; vCPU 0 moves on by some instructions at the first call.
    fn step_time(&self) -> Result<Duration, String> {
        measured(&self.pace.step, || {
            self.step(0, 1)?;
            self.regs(0).map(drop)
        })
    }

    /// How often a check may look at the registers of a running vCPU that would like to do so `wanted` times.
    pub(crate) fn looks(&self, wanted: u64) -> Result<u64, String> {
        Ok(fitting(wanted, self.look()?, LOOKING))
    }

    /// How long a loop is to go on in which a running vCPU is looked at some times, `least` or longer.
    pub(crate) fn worth_looking(&self, least: Duration) -> Result<Duration, String> {
        Ok(least.max(self.look()? * LOOKS))
    }

    /// How many single steps a check may do that would like to do `wanted`. The VM is paused; vCPU 0 may move on.
    pub(crate) fn single_steps(&self, wanted: u64) -> Result<u64, String> {
        Ok(fitting(wanted, self.step_time()?, LOOKING))
    }

    /// The largest count for one `step`, of `wanted`. The VM is paused; vCPU 0 may move on.
    pub(crate) fn step_count(&self, wanted: u64) -> Result<u64, String> {
        Ok(fitting(wanted, self.step_time()?, WRITE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_at_least_one_and_never_more_than_wanted() {
        let ms = Duration::from_millis;
        assert_eq!(fitting(300, ms(1), ms(2000)), 300);
        assert_eq!(fitting(300, ms(25), ms(2000)), 80);
        assert_eq!(fitting(300, ms(9000), ms(2000)), 1);
        assert_eq!(fitting(300, Duration::ZERO, ms(2000)), 300);
    }

    #[test]
    fn the_median_is_measured_once() {
        let (cell, mut calls) = (OnceCell::new(), 0);
        let time = measured(&cell, || {
            calls += 1;
            std::thread::sleep(Duration::from_millis(if calls == 1 { 100 } else { 2 }));
            Ok(())
        });
        let time = time.unwrap();
        assert!(time >= Duration::from_millis(2) && time < Duration::from_millis(100), "{time:?}");
        assert_eq!(measured(&cell, || Err("again".to_owned())), Ok(time));
    }
}
