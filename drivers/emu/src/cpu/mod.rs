//! One vCPU: its state, and what its instructions need of the world around it.

pub(crate) mod bits;
pub(crate) mod check;
mod control;
mod cpuid;
mod descriptor;
pub mod exec;
mod fetch;
pub(crate) mod grants;
mod intercept;
pub(crate) mod interrupt;
mod linear;
mod mmu;
pub(crate) mod msr;
mod step;
mod system;
mod transfer;
pub(crate) mod vcpu;
mod walk;
mod xsave;

pub(crate) use step::Stepped;

use vmtree_api::x86::Registers;

/// The architectural state of one vCPU.
#[derive(Clone, Debug, Default)]
pub struct Cpu {
    /// All that drivers show.
    pub regs: Registers,
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// The SSE control and status register.
    pub mxcsr: u32,
}

impl Cpu {
    /// The current privilege level: the DPL of SS (Intel SDM volume 3A, 5.5).
    #[must_use]
    pub fn cpl(&self) -> u8 {
        (self.regs.ss.attr >> 5 & 3) as u8
    }
}

/// An exception that an instruction raises instead of completing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Exception {
    /// The vector, 0 to 31.
    pub vector: u8,
    /// The error code, for the vectors that push one.
    pub error: Option<u32>,
    /// The linear address, for a page fault.
    pub cr2: Option<u64>,
}

impl Exception {
    /// #DE, divide error.
    pub const DIVIDE: Self = Self::plain(0);
    /// #UD, invalid opcode.
    pub const INVALID_OPCODE: Self = Self::plain(6);

    /// No exception: the instruction or delivery was stopped by an interception, and is done anew later. Nothing was
    /// changed.
    pub const STOPPED: Self = Self::plain(0xff);

    /// An exception without an error code.
    #[must_use]
    pub const fn plain(vector: u8) -> Self {
        Self { vector, error: None, cr2: None }
    }

    /// #GP with an error code.
    #[must_use]
    pub const fn protection(error: u32) -> Self {
        Self { vector: 13, error: Some(error), cr2: None }
    }

    /// This exception where the access was to the stack segment: an address that is not canonical raises #SS(0) there
    /// (Intel SDM volume 3A, 6.15). Accesses raise #GP(0) for no other reason.
    #[must_use]
    pub fn on_stack(self) -> Self {
        let stack = Self { vector: 12, error: Some(0), cr2: None };
        if self == Self::protection(0) { stack } else { self }
    }

    /// #PF at a linear address.
    #[must_use]
    pub const fn page(address: u64, error: u32) -> Self {
        Self { vector: 14, error: Some(error), cr2: Some(address) }
    }
}

/// What the data side of an instruction reaches. Addresses are linear: segment base added.
pub trait Bus {
    /// Reads `buf.len()` bytes (1 to 64) as the vCPU does at its current privilege, across a page border too.
    ///
    /// # Errors
    /// The exception the access raises; `buf` is then undefined.
    fn read(&mut self, cpu: &Cpu, address: u64, buf: &mut [u8]) -> Result<(), Exception>;

    /// Writes `data` (1 to 64 bytes); all of it or, on an exception, nothing.
    ///
    /// # Errors
    /// The exception the access raises.
    fn write(&mut self, cpu: &Cpu, address: u64, data: &[u8]) -> Result<(), Exception>;

    /// Reads for a read-modify-write: as [`Bus::read`], but a page that can't be written faults as a write now.
    ///
    /// # Errors
    /// The exception the access raises.
    fn read_for_write(&mut self, cpu: &Cpu, address: u64, buf: &mut [u8]) -> Result<(), Exception>;
}
