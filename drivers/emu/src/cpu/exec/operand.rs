//! Operands: general registers, immediates, memory and its addresses.

use iced_x86::{Instruction, OpKind, Register};

use super::{Exception, Step};

/// What an access to the memory operand raises, given what it would in any segment: with RSP or RBP as base it lies in
/// the stack segment. In 64-bit code only FS and GS override that (Intel SDM volume 1, 3.3.7.1).
pub(in super::super) fn fault(ins: &Instruction, exception: Exception) -> Exception {
    let base = matches!(ins.memory_base(), Register::RSP | Register::ESP | Register::RBP | Register::EBP);
    let stack = base && !matches!(ins.memory_segment(), Register::FS | Register::GS);
    if stack { exception.on_stack() } else { exception }
}

/// A run of register names in iced's order.
struct Group {
    first: Register,
    last: Register,
    /// The number of the first one.
    number: usize,
    /// The lowest bit of the part named.
    low: u32,
    /// The size of that part in bytes.
    size: u32,
}

/// The most used first.
const GROUPS: [Group; 6] = [
    Group { first: Register::RAX, last: Register::R15, number: 0, low: 0, size: 8 },
    Group { first: Register::EAX, last: Register::R15D, number: 0, low: 0, size: 4 },
    Group { first: Register::AX, last: Register::R15W, number: 0, low: 0, size: 2 },
    Group { first: Register::AL, last: Register::BL, number: 0, low: 0, size: 1 },
    Group { first: Register::AH, last: Register::BH, number: 0, low: 8, size: 1 },
    Group { first: Register::SPL, last: Register::R15L, number: 4, low: 0, size: 1 },
];

/// The general register a name stands for: its number, the lowest bit and the size in bytes of the part named.
/// `None` for any other kind of register.
pub(super) fn place(register: Register) -> Option<(usize, u32, u32)> {
    let group = GROUPS.iter().find(|group| (group.first..=group.last).contains(&register))?;
    Some((group.number + register as usize - group.first as usize, group.low, group.size))
}

/// The low `size` bytes.
pub(super) fn mask(size: u32) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (size * 8)) - 1 }
}

/// Sign-extends from `size` bytes.
pub(super) fn sign_extend(value: u64, size: u32) -> i64 {
    let unused = 64 - size.min(8) * 8;
    (value << unused) as i64 >> unused
}

impl Step<'_> {
    /// The value of a general register; 0 for another kind, which `execute` lets through nowhere.
    pub(super) fn gpr(&self, register: Register) -> u64 {
        place(register).map_or(0, |(number, low, size)| self.cpu.regs.gpr[number] >> low & mask(size))
    }

    /// Writes a general register: 32 bits clear the upper half, 8 and 16 bits leave the rest.
    pub(super) fn set_gpr(&mut self, register: Register, value: u64) {
        let Some((number, low, size)) = place(register) else { return };
        let whole = &mut self.cpu.regs.gpr[number];
        *whole = match size {
            4 | 8 => value & mask(size),
            _ => *whole & !(mask(size) << low) | (value & mask(size)) << low,
        };
    }

    /// Whether an operand lies in memory.
    pub(super) fn in_memory(&self, op: u32) -> bool {
        matches!(
            self.ins.op_kind(op),
            OpKind::Memory
                | OpKind::MemorySegRSI
                | OpKind::MemorySegESI
                | OpKind::MemoryESRDI
                | OpKind::MemoryESEDI
        )
    }

    /// The size of a register or memory operand in bytes.
    pub(super) fn size(&self, op: u32) -> u32 {
        match self.ins.op_kind(op) {
            OpKind::Register => self.ins.op_register(op).size() as u32,
            _ => self.ins.memory_size().size() as u32,
        }
    }

    /// Reads an operand of up to 8 bytes; immediates come sign-extended to 64 bits.
    pub(super) fn read(&mut self, op: u32) -> Result<u64, Exception> {
        match self.ins.op_kind(op) {
            OpKind::Register => Ok(self.gpr(self.ins.op_register(op))),
            _ if self.in_memory(op) => self.load(self.address(op, 0), self.size(op)),
            _ => Ok(self.ins.immediate(op)),
        }
    }

    /// Reads an operand that will be written.
    pub(super) fn read_for_write(&mut self, op: u32) -> Result<u64, Exception> {
        if self.in_memory(op) {
            self.load_for_write(self.address(op, 0), self.size(op))
        } else {
            self.read(op)
        }
    }

    /// Writes a register or memory operand of up to 8 bytes.
    pub(super) fn write(&mut self, op: u32, value: u64) -> Result<(), Exception> {
        if self.in_memory(op) {
            return self.store(self.address(op, 0), self.size(op), value);
        }
        self.set_gpr(self.ins.op_register(op), value);
        Ok(())
    }

    /// Reads `size` bytes, at most 8, of memory.
    pub(super) fn load(&mut self, address: u64, size: u32) -> Result<u64, Exception> {
        let mut bytes = [0; 8];
        self.load_bytes(address, &mut bytes[..size.min(8) as usize])?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// As `load`, for memory that will be written.
    pub(super) fn load_for_write(&mut self, address: u64, size: u32) -> Result<u64, Exception> {
        let mut bytes = [0; 8];
        self.load_bytes_for_write(address, &mut bytes[..size.min(8) as usize])?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes the low `size` bytes, at most 8, of `value` to memory.
    pub(super) fn store(&mut self, address: u64, size: u32, value: u64) -> Result<(), Exception> {
        self.store_bytes(address, &value.to_le_bytes()[..size.min(8) as usize])
    }

    /// Reads memory.
    pub(super) fn load_bytes(&mut self, address: u64, buf: &mut [u8]) -> Result<(), Exception> {
        self.bus.read(self.cpu, address, buf).map_err(|exception| fault(self.ins, exception))
    }

    /// As `load_bytes`, for memory that will be written.
    pub(super) fn load_bytes_for_write(&mut self, address: u64, buf: &mut [u8]) -> Result<(), Exception> {
        self.bus.read_for_write(self.cpu, address, buf).map_err(|exception| fault(self.ins, exception))
    }

    /// Writes memory.
    pub(super) fn store_bytes(&mut self, address: u64, data: &[u8]) -> Result<(), Exception> {
        self.bus.write(self.cpu, address, data).map_err(|exception| fault(self.ins, exception))
    }

    /// The linear address of a memory operand, `extra` bytes on.
    pub(super) fn address(&self, op: u32, extra: u64) -> u64 {
        let (offset, narrow) = match self.ins.op_kind(op) {
            OpKind::MemorySegRSI => (self.gpr(Register::RSI), false),
            OpKind::MemorySegESI => (self.gpr(Register::ESI), true),
            OpKind::MemoryESRDI => return self.gpr(Register::RDI),
            OpKind::MemoryESEDI => return self.gpr(Register::EDI),
            _ => self.offset(),
        };
        let offset = offset.wrapping_add(extra);
        let offset = if narrow { offset & mask(4) } else { offset };
        offset.wrapping_add(self.segment_base())
    }

    /// The offset of the memory operand in its segment, and whether addresses have 32 bits. Of a RIP-relative
    /// operand, iced gives the sum as displacement.
    pub(super) fn offset(&self) -> (u64, bool) {
        let ins = self.ins;
        let (base, index) = (ins.memory_base(), ins.memory_index());
        let offset = ins
            .memory_displacement64()
            .wrapping_add(self.gpr(base))
            .wrapping_add(self.gpr(index).wrapping_mul(u64::from(ins.memory_index_scale())));
        let narrow = base == Register::EIP
            || [base, index].iter().any(|register| (Register::EAX..=Register::R15D).contains(register))
            || ins.memory_displ_size() == 4 && base == Register::None && index == Register::None;
        (if narrow { offset & mask(4) } else { offset }, narrow)
    }

    /// In 64-bit code only FS and GS have a base.
    fn segment_base(&self) -> u64 {
        match self.ins.memory_segment() {
            Register::FS => self.cpu.regs.fs.base,
            Register::GS => self.cpu.regs.gs.base,
            _ => 0,
        }
    }
}
