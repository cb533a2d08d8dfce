//! Random registers and memory for a form, such that its memory operands lie in the data.

use iced_x86::{Mnemonic, OpKind, Register};
use vmtree_emu::cpu::Cpu;

use crate::forms::Form;
use crate::machine::{DATA_LEN, Layout, Memory, user_cpu};
use crate::random::Random;

/// The flags that user code can set without leaving its course: CF, PF, AF, ZF, SF, DF, OF.
pub const PLAIN_FLAGS: u64 = 0xcd5;

/// Any registers and memory. One time in four all come from two values, so that comparisons find equals.
pub fn any(layout: Layout, random: &mut Random) -> (Cpu, Memory) {
    let mut cpu = user_cpu(layout.code);
    let mut memory = Memory::new(layout.data);
    let pair = [random.operand(), random.operand()];
    let few = random.below(4) == 0;
    let mut value = || if few { random.pick(&pair) } else { random.operand() };
    cpu.regs.gpr.fill_with(&mut value);
    cpu.xmm.fill_with(|| u128::from(value()) << 64 | u128::from(value()));
    for word in memory.bytes.chunks_mut(8) {
        word.copy_from_slice(&value().to_le_bytes());
    }
    cpu.regs.rflags |= random.next() & PLAIN_FLAGS;
    (cpu, memory)
}

/// Registers and memory for this form.
pub fn fitting(form: &Form, layout: Layout, random: &mut Random) -> (Cpu, Memory) {
    let (mut cpu, mut memory) = any(layout, random);
    let ins = &form.ins;
    if ins.is_string_instruction() {
        string(&mut cpu, ins, layout, random);
    } else if ins.mnemonic() == Mnemonic::Xlatb {
        cpu.regs.gpr[3] = layout.data + random.below(DATA_LEN as u64 - 256);
    } else if (0..ins.op_count()).any(|op| ins.op_kind(op) == OpKind::Memory) {
        address(&mut cpu, form, layout, random);
    }
    match ins.mnemonic() {
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => bit_index(&mut cpu, form, random),
        Mnemonic::Div | Mnemonic::Idiv => dividend(&mut cpu, random),
        Mnemonic::Ldmxcsr => control(&cpu, &mut memory, form, random),
        // Beyond 16, a 16-bit double shift is undefined.
        Mnemonic::Shld | Mnemonic::Shrd if operand_bits(form) == 16 => {
            cpu.regs.gpr[1] = cpu.regs.gpr[1] & !0x1f | random.below(17);
        }
        _ => {}
    }
    (cpu, memory)
}

/// The size of the first operand.
pub fn operand_bits(form: &Form) -> u32 {
    match form.ins.op0_kind() {
        OpKind::Register => form.ins.op0_register().size() as u32 * 8,
        _ => form.ins.memory_size().size() as u32 * 8,
    }
}

fn string(cpu: &mut Cpu, ins: &iced_x86::Instruction, layout: Layout, random: &mut Random) {
    let narrow = (0..2).any(|op| matches!(ins.op_kind(op), OpKind::MemorySegESI | OpKind::MemoryESEDI));
    let repeats = ins.has_rep_prefix() || ins.has_repne_prefix();
    let count = random.below(20);
    // Whether no round at all clears the upper halves of 32-bit pointers differs between CPUs.
    let above = if narrow && !(repeats && count == 0) { random.next() << 32 } else { 0 };
    cpu.regs.gpr[6] = (layout.data + 200 + random.below(300)) | above;
    cpu.regs.gpr[7] = (layout.data + 400 + random.below(300)) | above;
    if repeats {
        cpu.regs.gpr[1] = count | above;
    }
}

/// Sets base and index so that the operand lies in the data, far enough from its ends for bit strings. Most vectors
/// are aligned, as most instructions want them.
fn address(cpu: &mut Cpu, form: &Form, layout: Layout, random: &mut Random) {
    let ins = &form.ins;
    let size = ins.memory_size().size();
    let align = if size == 16 && random.below(8) != 0 { !15 } else { !0 };
    let target = (layout.data + 320 + random.below(384)) & align;
    let (base, index) = (ins.memory_base(), ins.memory_index());
    let mut rest = target.wrapping_sub(ins.memory_displacement64());
    if index != Register::None {
        let value = random.operand();
        cpu.regs.gpr[index.number()] = value;
        rest = rest.wrapping_sub(value.wrapping_mul(u64::from(ins.memory_index_scale())));
    }
    if base != Register::None && base != Register::RIP {
        let wide = base.size() == 8;
        let value = if wide { rest } else { rest & 0xffff_ffff | random.next() << 32 };
        cpu.regs.gpr[base.number()] = value;
    }
}

/// A bit string reaches 256 bytes either way, as the data does.
fn bit_index(cpu: &mut Cpu, form: &Form, random: &mut Random) {
    if form.ins.op0_kind() == OpKind::Memory && form.ins.op1_kind() == OpKind::Register {
        let index = random.below(4096) as i64 - 2048;
        cpu.regs.gpr[form.ins.op1_register().number()] = index as u64;
    }
}

/// A dividend that is often small enough for a quotient.
fn dividend(cpu: &mut Cpu, random: &mut Random) {
    match random.below(4) {
        0 => cpu.regs.gpr[2] = 0,
        1 => cpu.regs.gpr[2] = (cpu.regs.gpr[0] as i64 >> 63) as u64,
        2 => cpu.regs.gpr[2] = random.below(8),
        _ => {}
    }
    if random.below(2) == 0 {
        cpu.regs.gpr[0] &= 0xff;
    }
}

/// A control word with no reserved bit, or with bit 31; bit 17 is not reserved on every CPU.
fn control(cpu: &Cpu, memory: &mut Memory, form: &Form, random: &mut Random) {
    let address = form.ins.virtual_address(0, 0, |register, _, _| Some(value(cpu, register)));
    let start = (address.unwrap() - memory.base) as usize;
    let word = random.next() as u32 & 0xffff | if random.below(4) == 0 { 1 << 31 } else { 0 };
    memory.bytes[start..start + 4].copy_from_slice(&word.to_le_bytes());
}

/// The value of an address register, or 0 for a segment's base.
fn value(cpu: &Cpu, register: Register) -> u64 {
    if register.is_gpr64() {
        cpu.regs.gpr[register.number()]
    } else if register.is_gpr32() {
        cpu.regs.gpr[register.number()] & 0xffff_ffff
    } else {
        0
    }
}
