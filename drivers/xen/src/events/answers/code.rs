//! The instruction at an event, by reading and decoding the guest's code.

use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, OpAccess, Register, UsedMemory,
};
use vmtree_api::x86::walk;
use vmtree_api::{Gva, ViewId};

use crate::events::wire::{General, Mode};
use crate::world::World;

/// The longest instruction (Intel SDM volume 2A, 2.3.11).
const LONGEST: usize = 15;
const PAGE: u64 = vmtree_api::PAGE_SIZE;

/// Decodes one instruction.
#[must_use]
pub fn decode(bytes: &[u8], bits: u32, rip: u64) -> Option<Instruction> {
    let mut decoder = Decoder::try_with_ip(bits, bytes, rip, DecoderOptions::NONE).ok()?;
    let instruction = decoder.decode();
    (!instruction.is_invalid()).then_some(instruction)
}

/// How many bytes of memory an instruction writes without having read them; `None` if it writes none, or reads them too.
#[must_use]
pub fn writes(instruction: &Instruction) -> Option<usize> {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(instruction);
    let mut written = info.used_memory().iter().filter(|memory| is_written(memory));
    let (first, more) = (written.next()?, written.next());
    (more.is_none() && first.access() == OpAccess::Write)
        .then(|| first.memory_size().size())
        .filter(|size| *size > 0)
}

/// Whether an instruction does nothing but write memory: then to skip it is to drop what it writes.
#[must_use]
pub fn only_writes(instruction: &Instruction) -> bool {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(instruction);
    let changes = info.used_registers().iter().any(|register| {
        !matches!(
            register.access(),
            OpAccess::None | OpAccess::NoMemAccess | OpAccess::Read | OpAccess::CondRead
        )
    });
    writes(instruction).is_some()
        && !changes
        && instruction.rflags_modified() == 0
        && instruction.flow_control() == iced_x86::FlowControl::Next
}

/// Where an operand of an instruction lies; `None` where that is told by more than general registers.
fn address(memory: &UsedMemory, mode: &Mode, general: &General) -> Option<u64> {
    memory.virtual_address(0, |register: Register, _, _| match register {
        register if register.is_segment_register() => mode.bases.get(register.number()).copied(),
        register if register.is_gpr() => {
            let bits = 8 * register.size();
            let whole = general.gpr.get(register.number()).copied()?;
            Some(if bits < 64 { whole & ((1 << bits) - 1) } else { whole })
        }
        _ => None,
    })
}

fn is_written(memory: &UsedMemory) -> bool {
    matches!(
        memory.access(),
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

/// An operand in memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Operand {
    /// Its address; `None` where that is told by more than general registers.
    pub at: Option<u64>,
    /// Its bytes; 0 where the processor's state decides.
    pub bytes: usize,
    /// It is written.
    pub written: bool,
}

/// The operands in memory of an instruction.
#[must_use]
pub fn operands(instruction: &Instruction, mode: &Mode, general: &General) -> Vec<Operand> {
    let mut factory = InstructionInfoFactory::new();
    let used = factory.info(instruction).used_memory();
    let touched = used.iter().filter(|memory| memory.access() != OpAccess::NoMemAccess);
    let operand = |memory: &UsedMemory| {
        let (at, bytes) = (address(memory, mode, general), memory.memory_size().size());
        Operand { at, bytes, written: is_written(memory) }
    };
    touched.map(operand).collect()
}

/// The addresses of memory that an instruction reads.
#[must_use]
pub fn sources(instruction: &Instruction, mode: &Mode, general: &General) -> Vec<u64> {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(instruction);
    let reads = |memory: &&UsedMemory| !matches!(memory.access(), OpAccess::Write | OpAccess::CondWrite);
    info.used_memory().iter().filter(reads).filter_map(|memory| address(memory, mode, general)).collect()
}

impl World {
    /// Reads the guest's memory through a view, at an address of a vCPU; what can't be read ends it.
    pub fn read_virtual(&self, view: ViewId, mode: &Mode, gva: u64, buf: &mut [u8]) -> usize {
        let mut done = 0;
        while done < buf.len() {
            let at = gva.wrapping_add(done as u64);
            let Some(gpa) = self.translate(view, mode, at) else { break };
            let length = ((PAGE - at % PAGE) as usize).min(buf.len() - done);
            let Some(part) = buf.get_mut(done..done + length) else { break };
            match self.read_physical(view, gpa, part) {
                Ok(read) => done += read,
                Err(_) => break,
            }
        }
        done
    }

    fn read_physical(&self, view: ViewId, gpa: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        let at = self.views.frame(view, gpa / PAGE) * PAGE + gpa % PAGE;
        self.shared.memory.mappings().read(at, buf)
    }

    /// Where an address of a vCPU lies in the guest's memory.
    #[must_use]
    pub fn translate(&self, view: ViewId, mode: &Mode, gva: u64) -> Option<u64> {
        let entry = |gpa: vmtree_api::Gpa| {
            let mut entry = [0; 8];
            self.read_physical(view, gpa.0, &mut entry).map(|_| u64::from_le_bytes(entry))
        };
        walk(&mode.paging, Gva(gva), entry).ok()?.ok().map(|found| found.gpa.0)
    }

    /// The instruction at `rip` of a vCPU.
    #[must_use]
    pub fn instruction(&self, view: ViewId, mode: &Mode, rip: u64) -> Option<Instruction> {
        let mut bytes = [0; LONGEST];
        let read = self.read_virtual(view, mode, mode.code(rip), &mut bytes);
        decode(bytes.get(..read)?, mode.bits, rip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_plain_writes_have_a_size() {
        for (code, size) in [
            (&[0x48, 0x89, 0x07][..], Some(8)),
            (&[0x88, 0x07], Some(1)),
            (&[0x66, 0xc7, 0x07, 1, 0], Some(2)),
            (&[0x01, 0x07], None),
            (&[0x8b, 0x07], None),
            (&[0x90], None),
        ] {
            assert_eq!(writes(&decode(code, 64, 0).unwrap()), size, "{code:x?}");
        }
        assert_eq!(decode(&[0x0f, 0xa2], 64, 0x1000).unwrap().len(), 2);
        assert!(decode(&[0x06], 64, 0).is_none());
    }

    #[test]
    fn what_only_writes_can_be_skipped() {
        for (code, only) in [
            (&[0x48, 0x89, 0x07][..], true),
            (&[0xc6, 0x07, 1], true),
            // stosb, push, xchg, add, call [rdi], sete, mov rax, [rdi]
            (&[0xaa], false),
            (&[0x50], false),
            (&[0x87, 0x07], false),
            (&[0x01, 0x07], false),
            (&[0xff, 0x17], false),
            (&[0x0f, 0x94, 0x07], true),
            (&[0x48, 0x8b, 0x07], false),
        ] {
            assert_eq!(only_writes(&decode(code, 64, 0).unwrap()), only, "{code:x?}");
        }
    }

    #[test]
    fn operands_tell_what_is_written_and_how_much() {
        let mut general = General::default();
        (general.gpr[4], general.gpr[7]) = (0x8000, 0x3000);
        let of = |code: &[u8]| {
            operands(&decode(code, 64, 0).unwrap(), &Mode { bits: 64, ..Mode::default() }, &general)
        };
        let operand = |at, bytes, written| Operand { at: Some(at), bytes, written };
        // xsave [rdi], xadd [rdi], ecx, push rax, mov eax, [rdi], lea eax, [rdi]
        assert_eq!(of(&[0x0f, 0xae, 0x27]), [operand(0x3000, 0, true)]);
        assert_eq!(of(&[0x0f, 0xc1, 0x0f]), [operand(0x3000, 4, true)]);
        assert_eq!(of(&[0x50]), [operand(0x7ff8, 8, true)]);
        assert_eq!(of(&[0x8b, 0x07]), [operand(0x3000, 4, false)]);
        assert_eq!(of(&[0x8d, 0x07]), []);
        // vpscatterdd [rdi+zmm1]{k1}, zmm0
        let scatter = of(&[0x62, 0xf2, 0x7d, 0x49, 0xa0, 0x04, 0x0f]);
        assert!(scatter.iter().any(|operand| operand.written && operand.at.is_none()), "{scatter:?}");
    }

    #[test]
    fn addresses_are_those_of_the_operands() {
        let mode = Mode { bits: 64, bases: [0, 0, 0, 0, 0, 0x10_0000], ..Mode::default() };
        let mut general = General::default();
        (general.gpr[6], general.gpr[7]) = (0x1_0000_2000, 0x3000);
        // outsb, outsb gs:[esi], add [rdi+8], eax
        for (code, at) in
            [(&[0x6e][..], 0x1_0000_2000), (&[0x65, 0x67, 0x6e], 0x10_2000), (&[0x01, 0x47, 0x08], 0x3008)]
        {
            assert_eq!(sources(&decode(code, 64, 0).unwrap(), &mode, &general), [at]);
        }
        assert!(sources(&decode(&[0x88, 0x07], 64, 0).unwrap(), &mode, &general).is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..16), bits in 0_u32..80) {
            if let Some(instruction) = decode(&bytes, bits, 0) {
                let only = only_writes(&instruction);
                prop_assert!(!only || writes(&instruction).is_some());
                let _ = sources(&instruction, &Mode::default(), &General::default());
                let operands = operands(&instruction, &Mode::default(), &General::default());
                prop_assert!(!only || operands.iter().any(|operand| operand.written));
            }
        }
    }
}
