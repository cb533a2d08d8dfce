//! Small guests, assembled here, on a machine without its thread.

mod canonical;
mod checks;
mod events;
mod held;
mod multi;
mod paging;
mod privilege;
mod system;
mod wild;

use std::sync::Arc;

use iced_x86::code_asm::CodeAssembler;
use vmtree_api::x86::{Registers, Segment, Table};

use crate::cpu::Stepped;
use crate::machine::State;
use crate::ram::Ram;
use crate::start;

/// Where the code of the vCPUs lies.
pub const CODE: u64 = 0x10_0000;
/// Where handlers lie, a page each.
pub const HANDLERS: u64 = 0x18_0000;
/// Where user code lies, in a 2 MiB page of its own.
pub const USER: u64 = 0x20_0000;
const IDT: u64 = 0x9000;
const GDT: u64 = 0xa000;
const TSS: u64 = 0xb000;
/// The stack of handlers that come from user mode.
pub const RSP0: u64 = 0xe000;
/// The first IST stack.
pub const IST1: u64 = 0xf000;
pub const USER_CODE: u64 = 0x23;
pub const USER_DATA: u64 = 0x1b;

pub struct Bench {
    pub state: State,
}

impl Bench {
    /// One vCPU that starts at this code.
    pub fn new(code: impl FnOnce(&mut CodeAssembler)) -> Self {
        Self::many(1, 0, code)
    }

    /// Several vCPUs that all start at this code, with a GDT, TSS and an empty IDT in place.
    pub fn many(vcpus: u32, seed: u64, code: impl FnOnce(&mut CodeAssembler)) -> Self {
        let ram = Arc::new(Ram::new(8 << 20).unwrap());
        start::tables(&ram);
        let list = (0..vcpus).map(|id| start::vcpu(id, vcpus, CODE)).collect();
        let mut bench = Self { state: State::new(list, ram, seed) };
        bench.code(CODE, code);
        let tss = TSS & 0xff_ffff;
        let gdt = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x0000_8900_0000_0067 | tss << 16,
            0,
        ];
        for (index, entry) in gdt.iter().enumerate() {
            bench.put(GDT + index as u64 * 8, *entry);
        }
        bench.put(TSS + 4, RSP0);
        bench.put(TSS + 36, IST1);
        // The I/O permission map would begin past the limit: there is none.
        bench.put(TSS + 0x60, 0x68 << 48);
        for vcpu in &mut bench.state.vcpus {
            let regs = &mut vcpu.cpu.regs;
            regs.gdtr = Table { base: GDT, limit: 0x37 };
            regs.idtr = Table { base: IDT, limit: 0xfff };
            regs.tr = Segment { selector: 0x28, base: TSS, limit: 0x67, attr: 0x8b };
        }
        bench
    }

    /// Puts code into memory.
    pub fn code(&mut self, at: u64, code: impl FnOnce(&mut CodeAssembler)) {
        let mut assembler = CodeAssembler::new(64).unwrap();
        code(&mut assembler);
        let bytes = assembler.assemble(at).unwrap();
        assert!(self.state.world.ram.store(at, &bytes));
    }

    /// A handler for a vector, on IST stack `ist`, reachable from privilege level `dpl`.
    pub fn handler(&mut self, vector: u8, ist: u64, dpl: u64, code: impl FnOnce(&mut CodeAssembler)) {
        let at = HANDLERS + u64::from(vector) * 0x100;
        self.code(at, code);
        self.gate(vector, at, ist, 0x8e | dpl << 5);
    }

    /// An entry of the IDT; `kind` is its type byte.
    pub fn gate(&mut self, vector: u8, at: u64, ist: u64, kind: u64) {
        let entry = at & 0xffff | 8 << 16 | ist << 32 | kind << 40 | (at >> 16 & 0xffff) << 48;
        self.put(IDT + u64::from(vector) * 16, entry);
        self.put(IDT + u64::from(vector) * 16 + 8, at >> 32);
    }

    pub fn put(&mut self, at: u64, value: u64) {
        assert!(self.state.world.ram.store(at, &value.to_le_bytes()));
    }

    pub fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        assert!(self.state.world.ram.load(at, &mut bytes));
        u64::from_le_bytes(bytes)
    }

    pub fn regs(&mut self) -> &mut Registers {
        &mut self.state.vcpus[0].cpu.regs
    }

    /// The whole of 2 MiB at [`USER`] for user mode, and the code there.
    pub fn user(&mut self, code: impl FnOnce(&mut CodeAssembler)) {
        for at in [0x1000, 0x2000] {
            let entry = self.word(at);
            self.put(at, entry | 4);
        }
        self.put(0x3008, USER | 0x87);
        self.code(USER, code);
    }

    /// The vCPU is in user mode now, at [`USER`].
    pub fn enter_user(&mut self) {
        let regs = self.regs();
        regs.rip = USER;
        regs.gpr[4] = USER + 0x10_0000;
        regs.cs = Segment { selector: USER_CODE as u16, base: 0, limit: u32::MAX, attr: 0xa0fb };
        regs.ss = Segment { selector: USER_DATA as u16, base: 0, limit: u32::MAX, attr: 0xc0f3 };
    }

    /// Runs vCPU 0 alone until it halts, and returns how many steps that took.
    pub fn run(&mut self) -> usize {
        for step in 0..100_000 {
            match self.state.step(0) {
                Stepped::Ran | Stepped::Yielded => {}
                Stepped::Idle => return step,
                Stepped::Held => panic!("held at {:#x}", self.regs().rip),
                Stepped::Dead => panic!("triple fault at {:#x}", self.regs().rip),
            }
        }
        panic!("it runs on at {:#x}", self.regs().rip);
    }
}
