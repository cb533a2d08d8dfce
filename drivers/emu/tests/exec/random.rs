//! Deterministic numbers, with the values at the edges more often than chance has them.

/// SplitMix64.
pub struct Random(pub u64);

const EDGES: [u64; 16] = [
    0,
    1,
    u64::MAX,
    i64::MIN as u64,
    i64::MAX as u64,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff,
    0x8000,
    0xffff,
    0x7f,
    0x80,
    0xff,
    0x5555_5555_5555_5555,
    0x8080_8080_8080_8080,
];

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An operand: an edge, a small number of either sign, few bits, or any number.
    pub fn operand(&mut self) -> u64 {
        match self.below(4) {
            0 => self.pick(&EDGES),
            1 => (self.below(128) as i64 - 64) as u64,
            2 => self.next() >> self.below(64),
            _ => self.next(),
        }
    }
}
