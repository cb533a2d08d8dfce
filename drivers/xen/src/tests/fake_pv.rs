//! A PV domain's vCPUs.

use std::io::Result;

use super::fake::{Fake, errno};
use crate::error::number::{ENODATA, EOPNOTSUPP};
use crate::hypervisor::Paravirtual;
use crate::registers::records::{put, word};

/// Where CR3 lies in a context, which Xen lets nobody change, and RFLAGS, of which it keeps IF set.
const CR3: usize = 5008;
const RFLAGS: usize = 664;
const IF: u64 = 1 << 9;
/// What the extended state begins with.
pub const EXTENDED: [u8; 4] = *b"AVX!";

impl Paravirtual for Fake {
    fn width(&self) -> Result<u32> {
        Ok(if self.0.state.lock().narrow { 4 } else { 8 })
    }

    fn context(&self, vcpu: u32) -> Result<Vec<u8>> {
        match self.call()?.contexts.get(vcpu as usize) {
            Some(context) if !context.is_empty() => Ok(context.clone()),
            _ => errno(ENODATA),
        }
    }

    fn set_context(&self, vcpu: u32, context: &[u8]) -> Result<()> {
        let mut state = self.call()?;
        assert!(state.pauses > 0, "the domain runs between load and store");
        let old = &state.contexts[vcpu as usize];
        if word(old, CR3) != word(context, CR3) {
            return errno(EOPNOTSUPP);
        }
        let mut new = context.to_vec();
        let flags = word(context, RFLAGS) | IF;
        put(&mut new, RFLAGS, &flags.to_le_bytes());
        state.contexts[vcpu as usize] = new;
        state.extended = Vec::new();
        Ok(())
    }

    fn extended(&self, _vcpu: u32) -> Result<Vec<u8>> {
        Ok(self.call()?.extended.clone())
    }

    fn set_extended(&self, _vcpu: u32, state: &[u8]) -> Result<()> {
        self.call()?.extended = state.to_vec();
        Ok(())
    }
}
