//! Whose turn it is: the vCPUs in a circle, for turns whose lengths the seed decides.

/// The shortest turn, in steps.
const SHORTEST: u64 = 500;
/// How many lengths there are.
const SPREAD: u64 = 1500;

/// The order of the vCPUs' turns. It depends on the seed and on virtual time alone.
#[derive(Debug)]
pub struct Turns {
    seed: u64,
    current: usize,
    /// Steps left in this turn.
    left: u64,
}

impl Turns {
    /// The order that this seed gives; vCPU 0 begins.
    pub fn new(seed: u64) -> Self {
        Self { seed, current: usize::MAX, left: 0 }
    }

    /// The vCPU whose turn it is, of so many. A new turn begins at the virtual time `now`.
    pub fn current(&mut self, now: u64, vcpus: usize) -> usize {
        if self.left == 0 {
            self.current = self.current.wrapping_add(1) % vcpus.max(1);
            self.left = SHORTEST + mix(self.seed ^ mix(now)) % SPREAD;
        }
        self.current
    }

    /// A step of the turn was used.
    pub fn used(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// The turn ends.
    pub fn end(&mut self) {
        self.left = 0;
    }
}

/// A number that looks like chance: the finalizer of SplitMix64 (Steele, Lea, Flood, 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(seed: u64) -> Vec<(usize, u64)> {
        let mut turns = Turns::new(seed);
        let mut now = 0;
        (0..10)
            .map(|_| {
                let current = turns.current(now, 3);
                let left = turns.left;
                now += left;
                turns.end();
                (current, left)
            })
            .collect()
    }

    #[test]
    fn everyone_has_turns_and_the_seed_decides_their_lengths() {
        let order: Vec<usize> = lengths(0).iter().map(|(current, _)| *current).collect();
        assert_eq!(order, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(lengths(7), lengths(7));
        assert_ne!(lengths(7), lengths(8));
    }
}
