//! An event on the wire.

use crate::code::{Reader, Result, Write};
use crate::{Kind, Way};

/// The bytes of an event.
pub const EVENT_BYTES: usize = 72;

/// Bits of [`Event::flags`].
pub mod flag {
    /// The vCPU stands still until a verdict comes.
    pub const HELD: u16 = 1;
    /// An interrupt: [`super::Event::extra`] has an error code.
    pub const ERROR: u16 = 2;
    /// An interrupt: [`super::Event::b`] is CR2.
    pub const CR2: u16 = 4;
    /// slat, breakpoint: [`super::Event::a`] is the gpa.
    pub const GPA: u16 = 8;
    /// slat: [`super::Event::b`] is the gva.
    pub const GVA: u16 = 16;
    /// slat: a page walk did it.
    pub const PAGE_WALK: u16 = 32;
    /// interrupt: of which vector it is can't be told, and [`super::Event::index`] has the type alone.
    pub const NO_VECTOR: u16 = 64;
    /// io: a string instruction, whose data are in memory.
    pub const STRING: u16 = 128;
    /// cr0: of an instruction that moves a part of the register, which no other value can be given.
    pub const PART: u16 = 2048;
    /// held: no page fault can be made here.
    pub const NO_FAULT: u16 = 4096;
    /// held: the vCPU can't be made to go on elsewhere with the arithmetic flags that it has.
    pub const FLAGS_LOST: u16 = 256;
    /// Beside [`FLAGS_LOST`]: the instruction itself, or what follows it, uses them.
    pub const FLAGS_USED: u16 = 512;
    /// Beside [`FLAGS_LOST`]: what follows the instruction uses them.
    pub const FLAGS_USED_AFTER: u16 = 1024;
}

/// An event, with the registers that an observer needs. What `index`, `extra`, `a` and `b` are depends on the kind:
///
/// | kind | index | extra | a | b |
/// |---|---|---|---|---|
/// | cr0 cr3 cr4 cr8 xcr0 | | | to: old, from: value | to: new |
/// | dr | register | | as above | |
/// | msr | index | | as above | |
/// | interrupt | vector, type in bits 8 to 15 | error code | | CR2 |
/// | breakpoint | length | | gpa | |
/// | slat | | bytes | gpa | gva |
/// | cpuid | leaf | subleaf | | |
/// | io | port | bytes | to: value | |
/// | descriptor | 0 gdtr, 1 idtr, 2 ldtr, 3 tr | | | |
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Event {
    /// Its number: from 1 on, and without gaps, in each session.
    pub seq: u64,
    /// The vCPU, from 0.
    pub vcpu: u32,
    /// Its kind.
    pub kind: Kind,
    /// The way in which it happened.
    pub way: Way,
    /// Bits of [`flag`].
    pub flags: u16,
    /// The address of the instruction that is about to do it.
    pub rip: u64,
    /// The address space.
    pub cr3: u64,
    /// See the table.
    pub index: u32,
    /// See the table.
    pub extra: u32,
    /// See the table.
    pub a: u64,
    /// See the table.
    pub b: u64,
    /// The privilege level in bits 0 and 1 of the code that did it; the rest is 0.
    pub cpl: u8,
}

impl Event {
    /// An event of which no more is known than where it happened.
    #[must_use]
    pub fn new(kind: Kind, way: Way, vcpu: u32) -> Self {
        Self { seq: 0, vcpu, kind, way, flags: 0, rip: 0, cr3: 0, index: 0, extra: 0, a: 0, b: 0, cpl: 0 }
    }

    /// Whether the vCPU waits.
    #[must_use]
    pub fn held(&self) -> bool {
        self.flags & flag::HELD != 0
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.u64(self.seq);
        out.u32(self.vcpu);
        out.u8(self.kind as u8);
        out.u8(self.way as u8);
        out.u16(self.flags);
        out.u64(self.rip);
        out.u64(self.cr3);
        out.u32(self.index);
        out.u32(self.extra);
        out.u64(self.a);
        out.u64(self.b);
        out.u8(self.cpl);
        out.extend_from_slice(&[0; 15]);
    }

    pub(crate) fn decode(bytes: &mut Reader) -> Result<Self> {
        let event = Self {
            seq: bytes.u64()?,
            vcpu: bytes.u32()?,
            kind: Kind::try_from(bytes.u8()?)?,
            way: Way::try_from(bytes.u8()?)?,
            flags: bytes.u16()?,
            rip: bytes.u64()?,
            cr3: bytes.u64()?,
            index: bytes.u32()?,
            extra: bytes.u32()?,
            a: bytes.u64()?,
            b: bytes.u64()?,
            cpl: bytes.u8()?,
        };
        bytes.bytes(15)?;
        Ok(event)
    }
}
