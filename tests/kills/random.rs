//! Random numbers that are the same for the same seed.

use std::io::Write;
use std::time::{Duration, SystemTime};

/// A generator (splitmix64).
pub struct Random(u64);

impl Random {
    /// The numbers of one of the parts that share a seed.
    pub fn new(seed: u64, part: u64) -> Self {
        let mut random = Self(seed);
        random.0 = random.next() ^ part.wrapping_mul(0xd134_2543_de82_ef95);
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True in one of `many` cases.
    pub fn once_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    pub fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize].clone()
    }

    pub fn micros(&mut self, end: u64) -> Duration {
        Duration::from_micros(self.below(end))
    }
}

/// A number that the environment may set.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// The seed: `VMTREE_SEED`, or the time. Told past the capture of the test harness, for a test that hangs or is killed.
pub fn seed(test: &str) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = setting("VMTREE_SEED", now.as_nanos() as u64 % 1_000_000);
    let _ = writeln!(std::io::stderr(), "{test}: VMTREE_SEED={seed}");
    seed
}
