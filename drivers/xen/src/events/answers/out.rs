//! An OUT with another value, as it is noted for whoever undoes us, and how RAX is given back.

use std::fmt;
use std::str::FromStr;

use vmtree_api::x86::Reg;
use vmtree_api::{Error, ErrorKind, RegValue, Result, number};

use crate::again::again;
use crate::error::refused;
use crate::hypervisor::Hypervisor;
use crate::registers::convert;
use crate::registers::records::{Records, kind};

const OP: &str = "end an OUT";

/// An OUT for which RAX was changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Out {
    /// The vCPU.
    pub vcpu: u32,
    /// The guest's own instruction.
    pub at: u64,
    /// The one behind it.
    pub past: u64,
    /// The stack then.
    pub rsp: u64,
    /// RAX with the value.
    pub value: u64,
    /// RAX as it was.
    pub rax: u64,
}

impl Out {
    /// Where the vCPU goes on with its own RAX; `None` where it is elsewhere by now.
    fn goes_on(&self, rax: u64, rsp: u64, rip: u64) -> Option<u64> {
        match self.at.wrapping_sub(rip) {
            _ if (rax, rsp) != (self.value, self.rsp) => None,
            0 => Some(self.past),
            // Xen has not begun.
            1..=3 => Some(self.at),
            _ => None,
        }
    }

    /// Gives the vCPU its RAX back, once the ring is gone; the domain stands still.
    ///
    /// # Errors
    /// [`ErrorKind::Stale`] where the vCPU is elsewhere by now, and those of Xen.
    pub fn end(&self, xen: &dyn Hypervisor) -> Result<()> {
        let failed = |error| refused(OP, "Xen does not give or take the vCPU's state", error);
        let mut records = Records::parse(again(|| xen.load()).map_err(failed)?)?;
        let regs = convert::all(&records, self.vcpu);
        let ([rax, ..], [_, _, _, _, rsp, ..]) = (regs.gpr, regs.gpr);
        let Some(rip) = self.goes_on(rax, rsp, regs.rip) else {
            return Err(Error::new(ErrorKind::Stale, OP, "it has gone elsewhere"));
        };
        if rip == self.at {
            log::error!("the OUT of vCPU {} at {rip:#x} has the guest's own value after all", self.vcpu);
        }
        convert::set(&mut records, self.vcpu, Reg::Rax, RegValue::Word(self.rax));
        convert::set(&mut records, self.vcpu, Reg::Rip, RegValue::Word(rip));
        let part = records.part(self.vcpu, &[kind::CPU]);
        again(|| xen.store(&part)).map_err(failed)
    }
}

impl fmt::Display for Out {
    /// As one word of a note.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vcpu, at, past, rsp, value, rax } = *self;
        write!(f, "{vcpu}:out={at:#x},{past:#x},{rsp:#x},{value:#x},{rax:#x}")
    }
}

impl FromStr for Out {
    type Err = ();

    fn from_str(word: &str) -> std::result::Result<Self, ()> {
        let (vcpu, numbers) = word.split_once(":out=").ok_or(())?;
        let numbers: Vec<u64> = numbers.split(',').filter_map(|number| number::parse(number).ok()).collect();
        let &[at, past, rsp, value, rax] = &numbers[..] else { return Err(()) };
        Ok(Self { vcpu: vcpu.parse().map_err(drop)?, at, past, rsp, value, rax })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_noted_is_read_back(vcpu: u32, at: u64, past: u64, rsp: u64, value: u64, rax: u64) {
            let out = Out { vcpu, at, past, rsp, value, rax };
            prop_assert_eq!(out.to_string().parse(), Ok(out));
            prop_assert!(!out.to_string().contains(' '));
        }

        #[test]
        fn any_word_is_read_or_refused(word: String, numbers in "[0-9x,a-f]{0,40}") {
            let _ = (word.parse::<Out>(), format!("1:out={numbers}").parse::<Out>());
        }
    }
}
