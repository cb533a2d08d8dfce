//! XMM operands.

use iced_x86::{OpKind, Register};

use super::super::operand::mask;
use super::super::{Exception, Step};

impl Step<'_> {
    /// An XMM register; 0 for another kind, which `execute` lets through nowhere.
    fn xmm(&self, register: Register) -> u128 {
        index(register).map_or(0, |index| self.cpu.xmm[index])
    }

    /// Whether an operand is an XMM register.
    pub(super) fn is_xmm(&self, op: u32) -> bool {
        self.ins.op_kind(op) == OpKind::Register && index(self.ins.op_register(op)).is_some()
    }

    /// The value of an XMM register operand.
    pub(super) fn vector(&self, op: u32) -> u128 {
        self.xmm(self.ins.op_register(op))
    }

    /// Writes an XMM register operand.
    pub(super) fn set_vector(&mut self, op: u32, value: u128) {
        if let Some(index) = index(self.ins.op_register(op)) {
            self.cpu.xmm[index] = value;
        }
    }

    /// Reads an XMM register, or 16 bytes of memory that must be aligned if `aligned`.
    pub(super) fn read_vector(&mut self, op: u32, aligned: bool) -> Result<u128, Exception> {
        if self.is_xmm(op) {
            return Ok(self.vector(op));
        }
        let address = self.vector_address(op, aligned)?;
        let mut bytes = [0; 16];
        self.load_bytes(address, &mut bytes)?;
        Ok(u128::from_le_bytes(bytes))
    }

    /// Writes an XMM register, or 16 bytes of memory that must be aligned if `aligned`.
    pub(super) fn write_vector(&mut self, op: u32, value: u128, aligned: bool) -> Result<(), Exception> {
        if self.is_xmm(op) {
            self.set_vector(op, value);
            return Ok(());
        }
        let address = self.vector_address(op, aligned)?;
        self.store_bytes(address, &value.to_le_bytes())
    }

    fn vector_address(&self, op: u32, aligned: bool) -> Result<u64, Exception> {
        let address = self.address(op, 0);
        if aligned && !address.is_multiple_of(16) { Err(Exception::protection(0)) } else { Ok(address) }
    }

    /// Reads the low `size` bytes, at most 8, of an XMM register, or an operand in memory or a general register.
    pub(super) fn read_low(&mut self, op: u32, size: u32) -> Result<u64, Exception> {
        let value = if self.is_xmm(op) { self.vector(op) as u64 } else { self.read(op)? };
        Ok(value & mask(size))
    }
}

fn index(register: Register) -> Option<usize> {
    let known = (Register::XMM0..=Register::XMM15).contains(&register);
    known.then(|| register as usize - Register::XMM0 as usize)
}
