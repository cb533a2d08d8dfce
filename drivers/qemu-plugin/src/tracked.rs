//! What QEMU's interface doesn't show of a vCPU, known from having seen every instruction that changes it.

use std::collections::HashMap;

use crate::interrupts::Deliveries;

/// A vCPU's hidden registers, as its own instructions left them.
pub struct Tracked {
    /// The base of the interrupt descriptor table and its limit, where one was loaded.
    pub idt: Option<(u64, u16)>,
    /// The debug registers.
    pub dr: [u64; 8],
    /// XCR0.
    pub xcr0: u64,
    msr: HashMap<u32, u64>,
    /// Where each handler's vector was found last.
    pub vectors: HashMap<u64, u8>,
    /// What QEMU has told of interrupts and exceptions.
    pub deliveries: Deliveries,
}

/// The most MSRs that are kept.
const MSRS: usize = 4096;

impl Default for Tracked {
    fn default() -> Self {
        // The values after reset: Intel SDM volume 3A, table 10-1, and volume 4 for the MSRs.
        let msr = HashMap::from([(0x1b, 0xfee0_0900), (0x277, 0x0007_0406_0007_0406)]);
        Self {
            idt: None,
            dr: [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400],
            xcr0: 1,
            msr,
            vectors: HashMap::new(),
            deliveries: Deliveries::default(),
        }
    }
}

impl Tracked {
    /// What was last written to an MSR.
    #[must_use]
    pub fn msr(&self, index: u32) -> u64 {
        self.msr.get(&index).copied().unwrap_or(0)
    }

    /// An MSR is written.
    pub fn set_msr(&mut self, index: u32, value: u64) {
        if self.msr.len() < MSRS || self.msr.contains_key(&index) {
            self.msr.insert(index, value);
        }
    }
}
