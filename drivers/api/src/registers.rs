//! Registers: what an architecture has, what a driver offers of it, and how they are read and written.

use std::time::Duration;

use crate::x86;
use crate::{Arch, Error, ErrorKind, Missing, Result, VcpuId};

/// A register, as its place in [`Arch::registers`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RegId(pub u16);

/// What a register looks like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RegShape {
    /// A number of so many bits.
    Word(u32),
    /// A segment register with its hidden part.
    Segment,
    /// A descriptor-table register: base and limit.
    Table,
}

/// A row of an architecture's register table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RegDef {
    /// The manual's name in lower case, which is the name of its file.
    pub name: &'static str,
    /// What it looks like.
    pub shape: RegShape,
}

/// The value of a register.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RegValue {
    /// Of a [`RegShape::Word`].
    Word(u64),
    /// Of a [`RegShape::Segment`].
    Segment(x86::Segment),
    /// Of a [`RegShape::Table`].
    Table(x86::Table),
}

impl Arch {
    /// The architecture's registers in their fixed order; a [`RegId`] is an index of it.
    #[must_use]
    pub fn registers(self) -> &'static [RegDef] {
        match self {
            Self::X86_64 => x86::REGISTERS,
        }
    }

    /// The register called `name`.
    #[must_use]
    pub fn register(self, name: &str) -> Option<RegId> {
        self.registers().iter().position(|def| def.name == name).map(|index| RegId(index as u16))
    }
}

/// All registers of one vCPU at one instant. Those that the driver doesn't offer are zero and never shown.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum RegisterSet {
    /// Of an x86-64 vCPU.
    X86_64(Box<x86::Registers>),
}

impl RegisterSet {
    /// A set of all zeros.
    #[must_use]
    pub fn new(arch: Arch) -> Self {
        match arch {
            Arch::X86_64 => Self::X86_64(Box::default()),
        }
    }

    /// The architecture it is of.
    #[must_use]
    pub fn arch(&self) -> Arch {
        match self {
            Self::X86_64(_) => Arch::X86_64,
        }
    }

    /// The value of a register; `None` for an id outside the architecture's table.
    #[must_use]
    pub fn get(&self, id: RegId) -> Option<RegValue> {
        match self {
            Self::X86_64(regs) => regs.get(x86::Reg::from_id(id)?).into(),
        }
    }

    /// Sets a register.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for an unknown id, [`ErrorKind::Invalid`] for a value of another shape,
    /// [`ErrorKind::OutOfRange`] for one that does not fit. Nothing is changed then.
    pub fn set(&mut self, id: RegId, value: RegValue) -> Result<()> {
        const OP: &str = "set register";
        let Some(def) = self.arch().registers().get(usize::from(id.0)) else {
            return Err(Error::new(ErrorKind::NotFound, OP, format!("there is no register number {}", id.0)));
        };
        let fits = match (def.shape, value) {
            (RegShape::Word(bits), RegValue::Word(word)) => bits >= 64 || word >> bits == 0,
            (RegShape::Segment, RegValue::Segment(_)) | (RegShape::Table, RegValue::Table(_)) => true,
            _ => {
                let why = format!("{} takes another kind of value", def.name);
                return Err(Error::new(ErrorKind::Invalid, OP, why));
            }
        };
        if !fits {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                OP,
                format!("the value is too large for {}", def.name),
            ));
        }
        match self {
            Self::X86_64(regs) => {
                if let Some(reg) = x86::Reg::from_id(id) {
                    regs.set(reg, value);
                }
            }
        }
        Ok(())
    }
}

/// A register that a driver offers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RegOffer {
    /// Which.
    pub id: RegId,
    /// Whether it can be written; else its file is 0444.
    pub writable: bool,
}

/// How long a call takes, which decides where it is made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pace {
    /// Microseconds, never waiting for a peer: made in the request's own thread.
    Prompt,
    /// May wait for a peer: made by a worker.
    Posted,
}

/// Register access.
pub trait Registers: Send + Sync {
    /// What is offered, in the architecture's order. Cached.
    fn offers(&self) -> &[RegOffer];

    /// How long [`Registers::read`] and [`Registers::write`] and the MSR calls take.
    fn pace(&self) -> Pace;

    /// All offered registers of `vcpu` at one instant. A running vCPU goes on afterwards.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for a vCPU that is not there.
    fn read(&self, vcpu: VcpuId) -> Result<RegisterSet>;

    /// At least the `wanted` registers of `vcpu` at one instant; others may be zero. A driver may have them by a cheaper
    /// way than all.
    ///
    /// # Errors
    /// As [`Registers::read`].
    fn read_some(&self, vcpu: VcpuId, wanted: &[RegId]) -> Result<RegisterSet>;

    /// How long a [`Registers::read`] of a running vCPU takes, as measured lately; `None` where nothing was measured.
    fn cost(&self) -> Option<Duration>;

    /// Sets some registers of `vcpu` together: all of them take, or none does. No change at all is a no-op.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a register that is not writable, [`ErrorKind::Invalid`] for a value the
    /// CPU would refuse (its reason in words). Nothing is changed then.
    fn write(&self, vcpu: VcpuId, changes: &[(RegId, RegValue)]) -> Result<()>;

    /// MSRs by index.
    ///
    /// # Errors
    /// [`Missing`] where only named ones can be had.
    fn msrs(&self) -> std::result::Result<&dyn Msrs, Missing>;
}

/// MSRs by index, as /dev/cpu/N/msr.
pub trait Msrs: Send + Sync {
    /// Reads one.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for an MSR that the vCPU does not have.
    fn read(&self, vcpu: VcpuId, index: u32) -> Result<u64>;

    /// Writes one.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for an MSR that is not there or read-only, [`ErrorKind::Invalid`] for a value
    /// that it can't hold. Nothing is changed then.
    fn write(&self, vcpu: VcpuId, index: u32, value: u64) -> Result<()>;
}
