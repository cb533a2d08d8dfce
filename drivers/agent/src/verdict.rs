//! What becomes of a held event.

use crate::code::{Reader, Result, Write};
use crate::{Action, Malformed, Reg};

/// What a held vCPU gets instead of the instruction's effect.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Inject {
    /// A page fault with this CR2 and error code.
    PageFault {
        /// CR2.
        address: u64,
        /// The error code.
        error: u32,
    },
    /// An exception.
    Exception {
        /// Its vector.
        vector: u8,
        /// Its error code.
        error: Option<u32>,
    },
    /// An external interrupt.
    Interrupt {
        /// Its vector.
        vector: u8,
    },
    /// A non-maskable interrupt.
    Nmi,
}

/// What becomes of a held event; see the contract of vmtree for what each means.
#[derive(Clone, Debug, Eq, PartialEq)]
#[allow(missing_docs, reason = "the variants bear the words of an answer")]
pub enum Verdict {
    Continue,
    Deny,
    Value(u128),
    Set(Vec<(Reg, u64)>),
    Step,
    Inject(Inject),
}

impl Verdict {
    /// Which action it is.
    #[must_use]
    pub fn action(&self) -> Action {
        match self {
            Self::Continue => Action::Continue,
            Self::Deny => Action::Deny,
            Self::Value(_) => Action::Value,
            Self::Set(_) => Action::Set,
            Self::Step => Action::Step,
            Self::Inject(_) => Action::Inject,
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.u8(self.action() as u8);
        match self {
            Self::Continue | Self::Deny | Self::Step => {}
            Self::Value(value) => out.u128(*value),
            Self::Set(registers) => encode_registers(registers, out),
            Self::Inject(inject) => inject.encode(out),
        }
    }

    pub(crate) fn decode(bytes: &mut Reader) -> Result<Self> {
        Ok(match Action::try_from(bytes.u8()?)? {
            Action::Continue => Self::Continue,
            Action::Deny => Self::Deny,
            Action::Step => Self::Step,
            Action::Value => Self::Value(bytes.u128()?),
            Action::Set => Self::Set(decode_registers(bytes)?),
            Action::Inject => Self::Inject(Inject::decode(bytes)?),
        })
    }
}

/// Registers with their values: nine bytes each.
pub(crate) fn encode_registers(registers: &[(Reg, u64)], out: &mut Vec<u8>) {
    out.u32(registers.len() as u32);
    for (reg, value) in registers {
        out.u8(*reg as u8);
        out.u64(*value);
    }
}

pub(crate) fn decode_registers(bytes: &mut Reader) -> Result<Vec<(Reg, u64)>> {
    (0..bytes.rows(9)?).map(|_| Ok((Reg::try_from(bytes.u8()?)?, bytes.u64()?))).collect()
}

impl Inject {
    fn encode(self, out: &mut Vec<u8>) {
        let (what, vector, error, address) = match self {
            Self::PageFault { address, error } => (0, 14, Some(error), address),
            Self::Exception { vector, error } => (1, vector, error, 0),
            Self::Interrupt { vector } => (2, vector, None, 0),
            Self::Nmi => (3, 2, None, 0),
        };
        out.u8(what);
        out.u8(vector);
        out.u8(u8::from(error.is_some()));
        out.u8(0);
        out.u32(error.unwrap_or(0));
        out.u64(address);
    }

    fn decode(bytes: &mut Reader) -> Result<Self> {
        let (what, vector, coded) = (bytes.u8()?, bytes.u8()?, bytes.u8()?);
        bytes.u8()?;
        let (error, address) = (bytes.u32()?, bytes.u64()?);
        Ok(match what {
            0 => Self::PageFault { address, error },
            1 => Self::Exception { vector, error: Some(error).filter(|_| coded == 1) },
            2 => Self::Interrupt { vector },
            3 => Self::Nmi,
            _ => return Err(Malformed("there is nothing of that number to inject")),
        })
    }
}
