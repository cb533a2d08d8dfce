//! Which instructions are watched, found while QEMU translates them.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};

/// What a watched instruction does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Op {
    /// A fetch from a watched page, whatever the instruction.
    Fetch,
    /// An instruction while single steps are wanted.
    Step,
    /// An access to memory while accesses are wanted.
    Access,
    MovToCr,
    MovFromCr,
    Clts,
    Lmsw,
    Smsw,
    MovToDr,
    MovFromDr,
    Wrmsr,
    Rdmsr,
    Xsetbv,
    Int3,
    Cpuid,
    In,
    Out,
    StringIn,
    StringOut,
    Hypercall,
    Lgdt,
    Lidt,
    Lldt,
    Ltr,
    Sgdt,
    Sidt,
    Sldt,
    Str,
}

/// All of them, in order of their numbers.
const OPS: [Op; 28] = [
    Op::Fetch,
    Op::Step,
    Op::Access,
    Op::MovToCr,
    Op::MovFromCr,
    Op::Clts,
    Op::Lmsw,
    Op::Smsw,
    Op::MovToDr,
    Op::MovFromDr,
    Op::Wrmsr,
    Op::Rdmsr,
    Op::Xsetbv,
    Op::Int3,
    Op::Cpuid,
    Op::In,
    Op::Out,
    Op::StringIn,
    Op::StringOut,
    Op::Hypercall,
    Op::Lgdt,
    Op::Lidt,
    Op::Lldt,
    Op::Ltr,
    Op::Sgdt,
    Op::Sidt,
    Op::Sldt,
    Op::Str,
];

/// A watched instruction, small enough to be a callback's argument: QEMU shares a translation between all addresses that
/// its page is mapped at, so of the address only the place in its page is sure.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Site {
    /// What it does.
    pub op: Op,
    /// The place in its page of 4096 bytes.
    pub offset: u16,
    /// Its bytes.
    pub len: u8,
    /// The general register it names, or the port.
    pub gpr: u8,
    /// The control or debug register it names, or the bytes that a port access has.
    pub number: u8,
    /// Whether the port is the one in DX.
    pub dx: bool,
    /// Whether QEMU has the arithmetic flags in pieces here: [`crate::flags`].
    pub split: bool,
}

impl Site {
    /// An instruction of `op` at this address, of which no more matters.
    #[must_use]
    pub fn plain(op: Op, address: u64, len: usize) -> Self {
        let offset = (address & 0xfff) as u16;
        Self { op, offset, len: len.min(15) as u8, gpr: 0, number: 0, dx: false, split: false }
    }

    /// The address of the instruction behind the one at `rip`.
    #[must_use]
    pub fn after(self, rip: u64) -> u64 {
        rip.wrapping_add(u64::from(self.len))
    }

    /// As a number.
    #[must_use]
    pub fn pack(self) -> u64 {
        u64::from(self.offset)
            | u64::from(self.len) << 12
            | (self.op as u64) << 16
            | u64::from(self.gpr) << 24
            | u64::from(self.number) << 32
            | u64::from(self.dx) << 40
            | u64::from(self.split) << 41
    }

    /// From such a number.
    #[must_use]
    pub fn unpack(packed: u64) -> Option<Self> {
        Some(Self {
            op: *OPS.get(usize::from((packed >> 16) as u8))?,
            offset: packed as u16 & 0xfff,
            len: (packed >> 12) as u8 & 0xf,
            gpr: (packed >> 24) as u8,
            number: (packed >> 32) as u8,
            dx: packed >> 40 & 1 == 1,
            split: packed >> 41 & 1 == 1,
        })
    }
}

/// Whether these bytes can be a watched instruction at all: most are not, and are not decoded.
#[must_use]
pub fn may_be_watched(bytes: &[u8]) -> bool {
    let is_prefix = |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
    let mut rest = bytes.iter().skip_while(|byte| is_prefix(byte));
    match (rest.next(), rest.next()) {
        (Some(0x0f), Some(second)) => matches!(second, 0x00 | 0x01 | 0x06 | 0x20..=0x23 | 0x30 | 0x32 | 0xa2),
        (Some(first), _) => matches!(first, 0x6c..=0x6f | 0xcc | 0xe4..=0xe7 | 0xec..=0xef),
        (None, _) => false,
    }
}

/// The instruction at the beginning of `bytes`, in code of so many bits.
#[must_use]
pub fn instruction(bytes: &[u8], bits: u32, address: u64) -> Instruction {
    Decoder::with_ip(bits, bytes, address, DecoderOptions::NONE).decode()
}

/// The watched instruction that these bytes are, if they are one.
#[must_use]
pub fn site(bytes: &[u8], bits: u32, address: u64) -> Option<Site> {
    if !may_be_watched(bytes) {
        return None;
    }
    let instruction = instruction(bytes, bits, address);
    let op = op(&instruction)?;
    let mut site = Site::plain(op, address, instruction.len());
    match op {
        Op::MovToCr | Op::MovToDr => {
            site.number = instruction.op0_register().number() as u8;
            site.gpr = instruction.op1_register().number() as u8;
        }
        Op::MovFromCr | Op::MovFromDr => {
            site.gpr = instruction.op0_register().number() as u8;
            site.number = instruction.op1_register().number() as u8;
        }
        Op::In | Op::Out => port(&instruction, &mut site),
        Op::StringIn | Op::StringOut => {
            site.dx = true;
            site.number = instruction.memory_size().size() as u8;
        }
        Op::Smsw => {
            site.gpr = if instruction.op0_kind() == OpKind::Register {
                instruction.op0_register().number() as u8
            } else {
                u8::MAX
            };
            site.number = instruction.op0_register().size() as u8;
        }
        _ => {}
    }
    Some(site)
}

fn port(instruction: &Instruction, site: &mut Site) {
    let (port, data) = if site.op == Op::In { (1, 0) } else { (0, 1) };
    site.number = instruction.op_register(data).size() as u8;
    site.dx = instruction.op_kind(port) == OpKind::Register;
    if !site.dx {
        site.gpr = instruction.immediate8();
    }
}

fn op(instruction: &Instruction) -> Option<Op> {
    Some(match instruction.mnemonic() {
        Mnemonic::Mov if instruction.op0_register().is_cr() => Op::MovToCr,
        Mnemonic::Mov if instruction.op1_register().is_cr() => Op::MovFromCr,
        Mnemonic::Mov if instruction.op0_register().is_dr() => Op::MovToDr,
        Mnemonic::Mov if instruction.op1_register().is_dr() => Op::MovFromDr,
        Mnemonic::Clts => Op::Clts,
        Mnemonic::Lmsw => Op::Lmsw,
        Mnemonic::Smsw => Op::Smsw,
        Mnemonic::Wrmsr => Op::Wrmsr,
        Mnemonic::Rdmsr => Op::Rdmsr,
        Mnemonic::Xsetbv => Op::Xsetbv,
        Mnemonic::Int3 if instruction.code() == Code::Int3 => Op::Int3,
        Mnemonic::Cpuid => Op::Cpuid,
        Mnemonic::In => Op::In,
        Mnemonic::Out => Op::Out,
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => Op::StringIn,
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => Op::StringOut,
        Mnemonic::Vmcall | Mnemonic::Vmmcall => Op::Hypercall,
        Mnemonic::Lgdt => Op::Lgdt,
        Mnemonic::Lidt => Op::Lidt,
        Mnemonic::Lldt => Op::Lldt,
        Mnemonic::Ltr => Op::Ltr,
        Mnemonic::Sgdt => Op::Sgdt,
        Mnemonic::Sidt => Op::Sidt,
        Mnemonic::Sldt => Op::Sldt,
        Mnemonic::Str => Op::Str,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn watched_instructions_are_found_with_what_they_name() {
        let rows: &[(&[u8], Op, u8, u8)] = &[
            (&[0x0f, 0x22, 0xd8], Op::MovToCr, 0, 3),
            (&[0x41, 0x0f, 0x22, 0xdf], Op::MovToCr, 15, 3),
            (&[0x44, 0x0f, 0x22, 0xc0], Op::MovToCr, 0, 8),
            (&[0x0f, 0x20, 0xd1], Op::MovFromCr, 1, 2),
            (&[0x0f, 0x23, 0xfa], Op::MovToDr, 2, 7),
            (&[0x0f, 0x06], Op::Clts, 0, 0),
            (&[0x0f, 0x30], Op::Wrmsr, 0, 0),
            (&[0x0f, 0x32], Op::Rdmsr, 0, 0),
            (&[0x0f, 0x01, 0xd1], Op::Xsetbv, 0, 0),
            (&[0xcc], Op::Int3, 0, 0),
            (&[0x0f, 0xa2], Op::Cpuid, 0, 0),
            (&[0xe6, 0x80], Op::Out, 0x80, 1),
            (&[0xed], Op::In, 0, 4),
            (&[0x66, 0xed], Op::In, 0, 2),
            (&[0xf3, 0x6c], Op::StringIn, 0, 1),
            (&[0x0f, 0x01, 0xc1], Op::Hypercall, 0, 0),
            (&[0x0f, 0x01, 0xd9], Op::Hypercall, 0, 0),
            (&[0x0f, 0x01, 0x18], Op::Lidt, 0, 0),
            (&[0x0f, 0x00, 0xd8], Op::Ltr, 0, 0),
        ];
        for (bytes, op, gpr, number) in rows {
            let site = site(bytes, 64, 0x1234).unwrap_or_else(|| panic!("{bytes:x?}"));
            assert_eq!((site.op, site.gpr, site.number), (*op, *gpr, *number), "{bytes:x?}");
            assert_eq!((site.offset, usize::from(site.len)), (0x234, bytes.len()));
        }
        for bytes in
            [&[0x90][..], &[0x0f, 0x05], &[0xcd, 0x80], &[0x48, 0x89, 0xd8], &[0x0f, 0x01, 0xf8], &[]]
        {
            assert_eq!(site(bytes, 64, 0), None, "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn a_site_comes_out_of_its_number(packed in any::<u64>()) {
            if let Some(site) = Site::unpack(packed) {
                prop_assert_eq!(Site::unpack(site.pack()), Some(site));
            }
        }

        #[test]
        fn any_bytes_are_decoded_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..16), bits in 0..3u32) {
            let bits = 16 << bits;
            let found = site(&bytes, bits, u64::MAX);
            // The quick look may let too much through, but never hides a watched instruction.
            if op(&instruction(&bytes, bits, 0)).is_some() {
                prop_assert!(found.is_some());
            }
        }
    }
}
