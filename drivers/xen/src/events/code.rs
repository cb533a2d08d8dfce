//! The instruction at an event, by reading and decoding the guest's code.

use iced_x86::{Decoder, DecoderOptions, Instruction, InstructionInfoFactory, OpAccess};
use vmtree_api::x86::walk;
use vmtree_api::{Gva, ViewId};

use super::wire::Mode;
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
    let mut written = info.used_memory().iter().filter(|memory| {
        matches!(
            memory.access(),
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        )
    });
    let (first, more) = (written.next()?, written.next());
    (more.is_none() && first.access() == OpAccess::Write)
        .then(|| first.memory_size().size())
        .filter(|size| *size > 0)
}

impl World {
    /// Reads the guest's memory through a view, at an address of a vCPU; what can't be read ends it.
    pub fn read_virtual(&self, view: ViewId, mode: &Mode, gva: u64, buf: &mut [u8]) -> usize {
        let physical = |gpa: u64, buf: &mut [u8]| {
            let at = self.views.frame(view, gpa / PAGE) * PAGE + gpa % PAGE;
            self.shared.memory.mappings().read(at, buf)
        };
        let mut done = 0;
        while done < buf.len() {
            let at = gva.wrapping_add(done as u64);
            let entry = |gpa: vmtree_api::Gpa| {
                let mut entry = [0; 8];
                physical(gpa.0, &mut entry).map(|_| u64::from_le_bytes(entry))
            };
            let Ok(Ok(found)) = walk(&mode.paging, Gva(at), entry) else { break };
            let length = ((PAGE - at % PAGE) as usize).min(buf.len() - done);
            let Some(part) = buf.get_mut(done..done + length) else { break };
            match physical(found.gpa.0, part) {
                Ok(read) => done += read,
                Err(_) => break,
            }
        }
        done
    }

    /// The instruction at `rip` of a vCPU.
    #[must_use]
    pub fn instruction(&self, view: ViewId, mode: &Mode, rip: u64) -> Option<Instruction> {
        let mut bytes = [0; LONGEST];
        let read = self.read_virtual(view, mode, mode.base.wrapping_add(rip), &mut bytes);
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

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..16), bits in 0_u32..80) {
            if let Some(instruction) = decode(&bytes, bits, 0) {
                let _ = writes(&instruction);
            }
        }
    }
}
