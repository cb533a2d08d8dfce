//! What the last snapshots of a running VM took.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;

/// How many are kept: the median of so few follows the load of the host.
const KEPT: usize = 15;

/// The last [`KEPT`] times.
#[derive(Debug, Default)]
pub struct Costs(Mutex<VecDeque<Duration>>);

impl Costs {
    /// Takes note of one.
    pub fn add(&self, cost: Duration) {
        let mut costs = self.0.lock();
        if costs.len() == KEPT {
            costs.pop_front();
        }
        costs.push_back(cost);
    }

    /// The median; `None` before the first.
    #[must_use]
    pub fn median(&self) -> Option<Duration> {
        let mut sorted: Vec<Duration> = self.0.lock().iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_of_the_last_ones() {
        let costs = Costs::default();
        assert_eq!(costs.median(), None);
        for micros in [9_000, 9_000].into_iter().chain(1..=KEPT as u64) {
            costs.add(Duration::from_micros(micros));
        }
        assert_eq!(costs.median(), Some(Duration::from_micros(8)));
    }
}
