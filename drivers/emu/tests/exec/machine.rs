//! A vCPU with a little memory, in the state of a user program.

use iced_x86::{Decoder, DecoderOptions, Instruction};
use vmtree_emu::cpu::exec::{Done, execute};
use vmtree_emu::cpu::{Bus, Cpu, Exception};

/// The bytes of memory that instructions may touch.
pub const DATA_LEN: usize = 1024;

/// Where code and data lie: below 2 GiB, so that 32-bit addresses reach them.
#[derive(Clone, Copy)]
pub struct Layout {
    pub code: u64,
    pub data: u64,
}

/// Where they lie when the host CPU has no say.
pub const LAYOUT: Layout = Layout { code: 0x40_0000, data: 0x40_2000 };

/// Memory at `base`, which can refuse the access that `refuse` accesses come before.
#[derive(Clone)]
pub struct Memory {
    pub base: u64,
    pub bytes: Vec<u8>,
    pub refuse: Option<usize>,
}

/// What a refused access raises.
pub const REFUSED: Exception = Exception::page(0x1234, 2);

impl Memory {
    pub fn new(base: u64) -> Self {
        Self { base, bytes: vec![0; DATA_LEN], refuse: None }
    }

    fn part(&mut self, address: u64, len: usize) -> Result<&mut [u8], Exception> {
        match &mut self.refuse {
            Some(0) => return Err(REFUSED),
            Some(left) => *left -= 1,
            None => {}
        }
        let start = address.wrapping_sub(self.base) as usize;
        let end = start.checked_add(len).filter(|end| *end <= self.bytes.len());
        end.map(|end| &mut self.bytes[start..end]).ok_or(Exception::page(address, 0))
    }
}

impl Bus for Memory {
    fn read(&mut self, _: &Cpu, address: u64, buf: &mut [u8]) -> Result<(), Exception> {
        buf.copy_from_slice(self.part(address, buf.len())?);
        Ok(())
    }

    fn write(&mut self, _: &Cpu, address: u64, data: &[u8]) -> Result<(), Exception> {
        self.part(address, data.len())?.copy_from_slice(data);
        Ok(())
    }

    fn read_for_write(&mut self, cpu: &Cpu, address: u64, buf: &mut [u8]) -> Result<(), Exception> {
        self.read(cpu, address, buf)
    }
}

/// A vCPU in user mode (CPL 3, IOPL 0) with SSE enabled, at `rip`.
pub fn user_cpu(rip: u64) -> Cpu {
    let mut cpu = Cpu { mxcsr: 0x1f80, ..Cpu::default() };
    cpu.regs.rip = rip;
    cpu.regs.rflags = 0x202;
    cpu.regs.ss.attr = 0xf3;
    cpu.regs.cr0 = 0x8000_0011;
    cpu.regs.cr4 = 1 << 9;
    cpu
}

/// The instruction at `rip` of code that starts at `start`.
pub fn decode(code: &[u8], start: u64, rip: u64) -> Instruction {
    let rest = &code[(rip - start) as usize..];
    Decoder::with_ip(64, rest, rip, DecoderOptions::NONE).decode()
}

/// Runs code from its start to its end, or to an exception.
pub fn run(cpu: &mut Cpu, memory: &mut Memory, code: &[u8], start: u64) -> Result<(), Exception> {
    for _ in 0..1000 {
        if cpu.regs.rip == start + code.len() as u64 {
            return Ok(());
        }
        let instruction = decode(code, start, cpu.regs.rip);
        let rip = cpu.regs.rip;
        match execute(cpu, memory, &instruction)? {
            Done::Next => {}
            Done::Again => assert_eq!(cpu.regs.rip, rip),
            Done::NotHere => panic!("not executed: {:?} ({code:02x?})", instruction.code()),
        }
    }
    panic!("{code:02x?} does not end");
}

/// Everything an instruction can change, to compare.
pub fn state(cpu: &Cpu) -> (&vmtree_api::x86::Registers, &[u128; 16], u32) {
    (&cpu.regs, &cpu.xmm, cpu.mxcsr)
}
