//! The instruction forms under test.

use iced_x86::{
    Code, Encoder, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind as Kind, OpKind, Register,
};

use crate::machine::{DATA_LEN, Layout, decode};
use crate::random::Random;

/// An instruction to try, with its bytes at `Layout::code`.
pub struct Form {
    pub bytes: Vec<u8>,
    pub ins: Instruction,
    pub seed: u64,
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:02x?}", self.ins.code(), self.bytes)
    }
}

/// All that move neither RSP nor RIP; those are in `sequences.rs`.
#[rustfmt::skip]
pub fn mnemonics() -> Vec<Mnemonic> {
    use Mnemonic::*;
    vec![
        Mov, Movzx, Movsx, Movsxd, Movnti, Lea, Xchg, Bswap, Cbw, Cwde, Cdqe, Cwd, Cdq, Cqo, Lahf, Sahf, Xlatb,
        Add, Adc, Sub, Sbb, Cmp, Neg, Inc, Dec, And, Or, Xor, Not, Test,
        Shl, Sal, Shr, Sar, Rol, Ror, Rcl, Rcr, Shld, Shrd, Mul, Imul, Div, Idiv,
        Bt, Bts, Btr, Btc, Bsf, Bsr, Tzcnt, Lzcnt, Popcnt, Cmpxchg, Cmpxchg8b, Cmpxchg16b, Xadd,
        Movsb, Movsw, Movsd, Movsq, Stosb, Stosw, Stosd, Stosq, Lodsb, Lodsw, Lodsd, Lodsq,
        Scasb, Scasw, Scasd, Scasq, Cmpsb, Cmpsw, Cmpsd, Cmpsq,
        Clc, Stc, Cmc, Cld, Std, Nop, Endbr32, Endbr64, Pause, Lfence, Mfence, Sfence,
        Prefetchw, Prefetchnta, Prefetcht0, Prefetcht1, Prefetcht2,
        Seto, Setno, Setb, Setae, Sete, Setne, Setbe, Seta, Sets, Setns, Setp, Setnp, Setl, Setge, Setle, Setg,
        Cmovo, Cmovno, Cmovb, Cmovae, Cmove, Cmovne, Cmovbe, Cmova, Cmovs, Cmovns, Cmovp, Cmovnp, Cmovl, Cmovge,
        Cmovle, Cmovg,
        Movaps, Movups, Movapd, Movupd, Movdqa, Movdqu, Movntps, Movntpd, Movntdq, Lddqu, Movd, Movq, Movss,
        Movhps, Movhpd, Movlps, Movlpd, Movhlps, Movlhps, Pmovmskb, Movmskps, Movmskpd, Ldmxcsr, Stmxcsr,
        Pxor, Xorps, Xorpd, Por, Orps, Orpd, Pand, Andps, Andpd, Pandn, Andnps, Andnpd,
        Pcmpeqb, Pcmpeqw, Pcmpeqd, Pcmpgtb, Pcmpgtw, Pcmpgtd, Paddb, Paddw, Paddd, Paddq, Psubb, Psubw, Psubd,
        Psubq, Pminub, Pmaxub, Pminsw, Pmaxsw, Pmullw, Pmuludq,
        Punpcklbw, Punpcklwd, Punpckldq, Punpcklqdq, Punpckhbw, Punpckhwd, Punpckhdq, Punpckhqdq,
        Unpcklps, Unpcklpd, Unpckhps, Unpckhpd, Pshufd, Pshuflw, Pshufhw, Shufps, Pslldq, Psrldq,
        Psllw, Pslld, Psllq, Psrlw, Psrld, Psrlq, Psraw, Psrad,
    ]
}

/// Where an operand that can be either lies.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Register,
    Memory,
}

/// All forms, the same ones each time.
pub fn all(layout: Layout) -> Vec<Form> {
    let mnemonics = mnemonics();
    let mut forms = Vec::new();
    for code in Code::values().filter(|code| mnemonics.contains(&code.mnemonic())) {
        let info = code.op_code();
        // A 16-bit BSWAP is undefined; the floating-point CMPSD only shares its name with the string instruction.
        if info.encoding() != EncodingKind::Legacy
            || !info.mode64()
            || matches!(code, Code::Bswap_r16 | Code::Cmpsd_xmm_xmmm64_imm8)
        {
            continue;
        }
        for variant in 0..7 {
            let seed = (code as u64) << 8 | variant;
            let place = if variant < 3 { Place::Register } else { Place::Memory };
            let built = (0..20).find_map(|retry| build(code, place, layout, seed | retry << 32));
            let Some(mut ins) = built else { continue };
            prefixes(&mut ins, variant);
            // Not every combination of registers has an encoding, and XCHG with EAX is known by another one.
            let Some(bytes) = encode(&ins, layout.code) else { continue };
            let ins = decode(&bytes, layout.code, layout.code);
            forms.push(Form { bytes, ins, seed });
        }
    }
    forms
}

fn encode(ins: &Instruction, ip: u64) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(64);
    encoder.encode(ins, ip).ok()?;
    Some(encoder.take_buffer())
}

/// LOCK on every other variant with memory that allows it, and all repetitions of string instructions.
fn prefixes(ins: &mut Instruction, variant: u64) {
    let info = ins.code().op_code();
    let memory = (0..ins.op_count()).any(|op| ins.op_kind(op) == OpKind::Memory);
    ins.set_has_lock_prefix(info.can_use_lock_prefix() && memory && variant % 2 == 1);
    if ins.is_string_instruction() {
        ins.set_has_repe_prefix(matches!(variant, 1 | 2));
        ins.set_has_repne_prefix(matches!(variant, 4 | 5) && info.can_use_repne_prefix());
    }
}

/// One instruction with this encoding. `None` if it has operands of other kinds, or no place for this one.
fn build(code: Code, place: Place, layout: Layout, seed: u64) -> Option<Instruction> {
    let mut random = Random(seed);
    let info = code.op_code();
    let mut ins = Instruction::default();
    ins.set_code(code);
    let mut placed =
        info.op_kinds().iter().all(|kind| !either(*kind)) && (place == Place::Register || strings(code));
    for (op, kind) in info.op_kinds().iter().enumerate() {
        let op = op as u32;
        let in_memory = match kind {
            Kind::mem | Kind::mem_offs => true,
            kind if either(*kind) => place == Place::Memory,
            _ => false,
        };
        placed |= in_memory || either(*kind);
        if in_memory {
            ins.set_op_kind(op, OpKind::Memory);
            memory(&mut ins, &mut random, layout, *kind == Kind::mem_offs);
        } else {
            operand(&mut ins, op, *kind, &mut random)?;
        }
    }
    let usable = placed && encode(&ins, layout.code).is_some();
    usable.then_some(ins)
}

fn strings(code: Code) -> bool {
    let mut ins = Instruction::default();
    ins.set_code(code);
    ins.is_string_instruction()
}

/// Whether an operand can be a register or memory.
fn either(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::r8_or_mem | Kind::r16_or_mem | Kind::r32_or_mem | Kind::r64_or_mem | Kind::xmm_or_mem
    )
}

/// Sets an operand that is not in memory, or is so by its encoding.
fn operand(ins: &mut Instruction, op: u32, kind: Kind, random: &mut Random) -> Option<()> {
    let register = match kind {
        Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode => random.pick(&BYTES),
        Kind::r16_or_mem | Kind::r16_reg | Kind::r16_rm | Kind::r16_opcode => wide(random, Register::AX),
        Kind::r32_or_mem | Kind::r32_reg | Kind::r32_rm | Kind::r32_opcode => wide(random, Register::EAX),
        Kind::r64_or_mem | Kind::r64_reg | Kind::r64_rm | Kind::r64_opcode => wide(random, Register::RAX),
        Kind::xmm_or_mem | Kind::xmm_reg | Kind::xmm_rm => Register::XMM0 + random.below(16) as u32,
        Kind::al => Register::AL,
        Kind::cl => Register::CL,
        Kind::ax => Register::AX,
        Kind::eax => Register::EAX,
        Kind::rax => Register::RAX,
        _ => return implied(ins, op, kind, random),
    };
    ins.set_op_kind(op, OpKind::Register);
    ins.set_op_register(op, register);
    Some(())
}

fn implied(ins: &mut Instruction, op: u32, kind: Kind, random: &mut Random) -> Option<()> {
    let narrow = random.below(3) == 0;
    let (kind, value) = match kind {
        // Beyond 16, a 16-bit double shift is undefined.
        Kind::imm8 if matches!(ins.code(), Code::Shld_rm16_r16_imm8 | Code::Shrd_rm16_r16_imm8) => {
            (OpKind::Immediate8, random.below(17))
        }
        Kind::imm8 => (OpKind::Immediate8, random.operand() & 0xff),
        Kind::imm8_const_1 => (OpKind::Immediate8, 1),
        Kind::imm8sex16 => (OpKind::Immediate8to16, random.operand() as i8 as u64),
        Kind::imm8sex32 => (OpKind::Immediate8to32, random.operand() as i8 as u64),
        Kind::imm8sex64 => (OpKind::Immediate8to64, random.operand() as i8 as u64),
        Kind::imm16 => (OpKind::Immediate16, random.operand() & 0xffff),
        Kind::imm32 => (OpKind::Immediate32, random.operand() & 0xffff_ffff),
        Kind::imm32sex64 => (OpKind::Immediate32to64, random.operand() as i32 as u64),
        Kind::imm64 => (OpKind::Immediate64, random.operand()),
        Kind::seg_rSI if narrow => (OpKind::MemorySegESI, 0),
        Kind::seg_rSI => (OpKind::MemorySegRSI, 0),
        Kind::es_rDI if narrow => (OpKind::MemoryESEDI, 0),
        Kind::es_rDI => (OpKind::MemoryESRDI, 0),
        Kind::seg_rBX_al => {
            ins.set_op_kind(op, OpKind::Memory);
            ins.set_memory_base(Register::RBX);
            ins.set_memory_index(Register::AL);
            return Some(());
        }
        _ => return None,
    };
    ins.set_op_kind(op, kind);
    if matches!(kind, OpKind::MemorySegESI | OpKind::MemorySegRSI | OpKind::MemoryESEDI | OpKind::MemoryESRDI)
    {
        return Some(());
    }
    ins.set_immediate_u64(op, value);
    Some(())
}

const BYTES: [Register; 12] = [
    Register::AL,
    Register::CL,
    Register::DL,
    Register::BL,
    Register::AH,
    Register::CH,
    Register::DH,
    Register::BH,
    Register::SPL,
    Register::R8L,
    Register::R10L,
    Register::R11L,
];

/// A register from the file that starts at `first`; never one that addresses memory.
fn wide(random: &mut Random, first: Register) -> Register {
    first + random.pick(&[0, 1, 2, 3, 4, 8, 10, 11])
}

/// A memory operand: base, base and index with any scale, RIP-relative, with 32-bit addresses, or absolute. Which
/// base and index values lead into the data is for `scene.rs`.
fn memory(ins: &mut Instruction, random: &mut Random, layout: Layout, absolute: bool) {
    let target = layout.data + DATA_LEN as u64 / 2;
    if absolute {
        ins.set_memory_displacement64(target);
        ins.set_memory_displ_size(8);
        return;
    }
    let mode = random.below(6);
    if mode == 0 {
        ins.set_memory_base(Register::RIP);
        ins.set_memory_displacement64(target);
        ins.set_memory_displ_size(8);
        return;
    }
    let first = if mode == 1 { Register::EAX } else { Register::RAX };
    // RBP, RSI, R12, R13, R14; RDI, R9, R15.
    ins.set_memory_base(first + random.pick(&[5, 6, 12, 13, 14]));
    if mode > 2 {
        ins.set_memory_index(first + random.pick(&[7, 9, 15]));
        ins.set_memory_index_scale(random.pick(&[1, 2, 4, 8]));
    }
    let displacement = random.pick(&[0, 0x40, -0x40, 0x1234, -0x1234]);
    ins.set_memory_displacement64(displacement as u64);
    ins.set_memory_displ_size(8);
}
