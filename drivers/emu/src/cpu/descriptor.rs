//! Descriptors, and the loads of segment registers (Intel SDM volume 3A, chapters 3 and 5).

use iced_x86::{Instruction, Register};
use vmtree_api::x86::{Segment, Table};

use super::Exception;
use super::bits::canonical;
use super::mmu::Mode;
use super::vcpu::{Core, GP0, Outcome, Shadow};

/// #TS, #NP and #SS with the selector at fault.
#[must_use]
pub const fn about(vector: u8, selector: u16, external: u32) -> Exception {
    Exception { vector, error: Some((selector & 0xfffc) as u32 | external), cr2: None }
}

/// Vectors whose error code is a selector.
pub mod vector {
    #![allow(missing_docs, reason = "the constants bear the manual's names")]
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
}

/// A descriptor and where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    low: u64,
    high: u64,
    at: u64,
}

impl Descriptor {
    /// Type, S, DPL, P, AVL, L, D/B and G as [`Segment::attr`] has them.
    #[must_use]
    pub fn attr(&self) -> u16 {
        (self.low >> 40) as u16 & 0xf0ff
    }

    /// Its privilege level.
    #[must_use]
    pub fn dpl(&self) -> u16 {
        self.attr() >> 5 & 3
    }

    /// P.
    #[must_use]
    pub fn present(&self) -> bool {
        self.attr() & 0x80 != 0
    }

    /// Whether it is a code segment.
    #[must_use]
    pub fn is_code(&self) -> bool {
        self.attr() & 0x18 == 0x18
    }

    /// Whether it is code that runs at its caller's level.
    #[must_use]
    pub fn is_conforming(&self) -> bool {
        self.attr() & 0x1c == 0x1c
    }

    /// Whether it is code of 64 bits: L set, D clear.
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.attr() & 0x6000 == 0x2000
    }

    /// Whether it is data that can be written.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.attr() & 0x1a == 0x12
    }

    /// Whether it can be read: data, or readable code.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.attr() & 0x18 == 0x10 || self.attr() & 0x1a == 0x1a
    }

    /// The segment register that holds it.
    #[must_use]
    pub fn segment(&self, selector: u16) -> Segment {
        let base = self.low >> 16 & 0x00ff_ffff | self.low >> 32 & 0xff00_0000;
        let limit = (self.low & 0xffff | self.low >> 32 & 0xf_0000) as u32;
        let limit = if self.attr() & 0x8000 != 0 { limit << 12 | 0xfff } else { limit };
        Segment { selector, base: base | self.high << 32, limit, attr: self.attr() }
    }
}

/// The empty SS of 64-bit code at privilege level `cpl`, which its DPL still tells.
#[must_use]
pub fn empty_stack(cpl: u16) -> Segment {
    Segment { selector: cpl, base: 0, limit: 0, attr: cpl << 5 }
}

impl Core<'_> {
    /// Reads the descriptor that `selector` names: 8 bytes, or 16 of a system one in `wide`.
    pub fn descriptor(&mut self, selector: u16, bytes: u64, external: u32) -> Result<Descriptor, Exception> {
        let regs = &self.vcpu.cpu.regs;
        let (base, limit) = match selector & 4 {
            0 => (regs.gdtr.base, u64::from(regs.gdtr.limit)),
            _ if regs.ldtr.attr & 0x80 == 0 => return Err(about(vector::GP, selector, external)),
            _ => (regs.ldtr.base, u64::from(regs.ldtr.limit)),
        };
        let offset = u64::from(selector & 0xfff8);
        if offset + bytes - 1 > limit {
            return Err(about(vector::GP, selector, external));
        }
        let at = base.wrapping_add(offset);
        let low = self.read_u64(at)?;
        let high = if bytes == 16 { self.read_u64(at.wrapping_add(8))? & 0xffff_ffff } else { 0 };
        Ok(Descriptor { low, high, at })
    }

    /// Sets bits of a descriptor's type byte in memory: accessed, or busy.
    pub fn mark_descriptor(&mut self, descriptor: &mut Descriptor, bits: u8) -> Outcome {
        let type_byte = (descriptor.low >> 40) as u8 | bits;
        if descriptor.low >> 40 & u64::from(bits) != u64::from(bits) {
            self.write_as(Mode::Implicit, descriptor.at.wrapping_add(5), &[type_byte])?;
            descriptor.low |= u64::from(bits) << 40;
        }
        Ok(())
    }

    /// Loads DS, ES, FS, GS or SS as MOV and POP do.
    pub fn load_segment(&mut self, register: Register, selector: u16) -> Outcome {
        let segment = match register {
            Register::SS => self.stack_segment(selector)?,
            _ if selector & 0xfffc == 0 => Segment { selector, ..Segment::default() },
            _ => self.data_segment(selector)?,
        };
        if let Some(place) = self.segment_register(register) {
            *place = segment;
        }
        if register == Register::SS {
            self.vcpu.shadow = Shadow::Stack;
        }
        Ok(())
    }

    fn data_segment(&mut self, selector: u16) -> Result<Segment, Exception> {
        let mut descriptor = self.descriptor(selector, 8, 0)?;
        let needed = u16::from(self.vcpu.cpu.cpl()).max(selector & 3);
        if !descriptor.is_readable() || !descriptor.is_conforming() && needed > descriptor.dpl() {
            return Err(about(vector::GP, selector, 0));
        }
        if !descriptor.present() {
            return Err(about(vector::NP, selector, 0));
        }
        self.mark_descriptor(&mut descriptor, 1)?;
        Ok(descriptor.segment(selector))
    }

    fn stack_segment(&mut self, selector: u16) -> Result<Segment, Exception> {
        let cpl = u16::from(self.vcpu.cpu.cpl());
        if selector & 0xfffc == 0 {
            return if cpl < 3 && selector & 3 == cpl { Ok(empty_stack(cpl)) } else { Err(GP0) };
        }
        self.stack_for(selector, cpl, vector::GP)
    }

    /// The stack segment for code at `cpl`; `complaint` is the vector for one that does not fit.
    pub fn stack_for(&mut self, selector: u16, cpl: u16, complaint: u8) -> Result<Segment, Exception> {
        let mut descriptor = self.descriptor(selector, 8, 0)?;
        if selector & 3 != cpl || descriptor.dpl() != cpl || !descriptor.is_writable() {
            return Err(about(complaint, selector, 0));
        }
        if !descriptor.present() {
            return Err(about(vector::SS, selector, 0));
        }
        self.mark_descriptor(&mut descriptor, 1)?;
        Ok(descriptor.segment(selector))
    }

    /// The place of a segment register.
    pub fn segment_register(&mut self, register: Register) -> Option<&mut Segment> {
        let regs = &mut self.vcpu.cpu.regs;
        match register {
            Register::ES => Some(&mut regs.es),
            Register::CS => Some(&mut regs.cs),
            Register::SS => Some(&mut regs.ss),
            Register::DS => Some(&mut regs.ds),
            Register::FS => Some(&mut regs.fs),
            Register::GS => Some(&mut regs.gs),
            _ => None,
        }
    }

    /// LGDT and LIDT: 2 bytes of limit, 8 of base.
    pub fn load_table(&mut self, ins: &Instruction) -> Result<Table, Exception> {
        let mut bytes = [0; 10];
        self.load_operand(ins, &mut bytes)?;
        let (limit, base) = bytes.split_at(2);
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let table = Table { base: word(base), limit: word(limit) as u16 };
        if canonical(table.base) { Ok(table) } else { Err(GP0) }
    }

    /// SGDT and SIDT.
    pub fn store_table(&mut self, ins: &Instruction, table: Table) -> Outcome {
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
        bytes[2..].copy_from_slice(&table.base.to_le_bytes());
        self.store_operand(ins, &bytes)
    }

    /// LLDT.
    pub fn load_ldtr(&mut self, selector: u16) -> Outcome {
        if selector & 0xfffc == 0 {
            self.vcpu.cpu.regs.ldtr = Segment { selector, ..Segment::default() };
            return Ok(());
        }
        let descriptor = self.system_descriptor(selector, 2)?;
        self.vcpu.cpu.regs.ldtr = descriptor.segment(selector);
        Ok(())
    }

    /// LTR: the TSS becomes busy.
    pub fn load_tr(&mut self, selector: u16) -> Outcome {
        if selector & 0xfffc == 0 {
            return Err(GP0);
        }
        let mut descriptor = self.system_descriptor(selector, 9)?;
        self.mark_descriptor(&mut descriptor, 2)?;
        self.vcpu.cpu.regs.tr = descriptor.segment(selector);
        Ok(())
    }

    fn system_descriptor(&mut self, selector: u16, kind: u16) -> Result<Descriptor, Exception> {
        if selector & 4 != 0 {
            return Err(about(vector::GP, selector, 0));
        }
        let descriptor = self.descriptor(selector, 16, 0)?;
        if descriptor.attr() & 0x1f != kind || !canonical(descriptor.segment(selector).base) {
            return Err(about(vector::GP, selector, 0));
        }
        if !descriptor.present() {
            return Err(about(vector::NP, selector, 0));
        }
        Ok(descriptor)
    }
}
