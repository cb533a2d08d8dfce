//! Requests and responses of Xen's ring (public/vm_event.h, interface version 7), byte by byte.

use vmtree_api::x86::PagingMode;
use vmtree_api::x86::bits::EFER_LMA;

/// The bytes of a request, and of a response.
pub const SLOT: usize = 400;

/// A request or response as it lies in the ring.
pub type Slot = [u8; SLOT];

const VERSION: u32 = 7;
/// What a vCPU's XCR0 is that the guest has not written.
pub const XCR0_AT_FIRST: u64 = 3;

/// Flags of requests and responses (VM_EVENT_FLAG_*).
pub mod flag {
    #![allow(missing_docs, reason = "the constants bear the names of vm_event.h")]
    pub const VCPU_PAUSED: u32 = 1;
    pub const EMULATE: u32 = 1 << 2;
    pub const EMULATE_NOWRITE: u32 = 1 << 3;
    pub const TOGGLE_SINGLESTEP: u32 = 1 << 4;
    pub const SET_EMUL_READ_DATA: u32 = 1 << 5;
    pub const DENY: u32 = 1 << 6;
    pub const ALTERNATE_P2M: u32 = 1 << 7;
    pub const SET_REGISTERS: u32 = 1 << 8;
    pub const SET_EMUL_INSN_DATA: u32 = 1 << 9;
    pub const FAST_SINGLESTEP: u32 = 1 << 11;
}

/// Why a request was made (VM_EVENT_REASON_*).
pub mod reason {
    #![allow(missing_docs, reason = "the constants bear the names of vm_event.h")]
    pub const MEM_ACCESS: u32 = 1;
    pub const WRITE_CTRLREG: u32 = 4;
    pub const MOV_TO_MSR: u32 = 5;
    pub const SOFTWARE_BREAKPOINT: u32 = 6;
    pub const SINGLESTEP: u32 = 7;
    pub const GUEST_REQUEST: u32 = 8;
    pub const CPUID: u32 = 10;
    pub const DESCRIPTOR_ACCESS: u32 = 13;
    pub const EMUL_UNIMPLEMENTED: u32 = 14;
    pub const IO_INSTRUCTION: u32 = 16;
}

/// What an access was, of [`Cause::Access`] (MEM_ACCESS_*); bits 0 and 1 are read and write.
pub mod access {
    #![allow(missing_docs, reason = "the constants bear the names of vm_event.h")]
    pub const FETCH: u32 = 1 << 2;
    pub const GLA_VALID: u32 = 1 << 3;
    pub const FAULT_IN_GPT: u32 = 1 << 5;
}

/// Control registers by Xen's numbers (VM_EVENT_X86_*).
pub mod control {
    #![allow(missing_docs, reason = "the constants bear the names of vm_event.h")]
    pub const CR0: u32 = 0;
    pub const CR3: u32 = 1;
    pub const CR4: u32 = 2;
    pub const XCR0: u32 = 3;
}

/// What happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(missing_docs, reason = "the fields bear the names of vm_event.h")]
pub enum Cause {
    Access { gfn: u64, offset: u64, gla: u64, flags: u32 },
    Control { index: u32, new: u64, old: u64 },
    Msr { index: u32, new: u64, old: u64 },
    Breakpoint { gfn: u64, kind: u8, length: u32 },
    Step,
    GuestRequest,
    Cpuid { length: u32, leaf: u32, subleaf: u32 },
    Descriptor { table: u8, write: bool },
    Unemulated,
    Io { port: u16, bytes: u32, input: bool, string: bool },
}

/// A request, read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Request {
    /// Its flags.
    pub flags: u32,
    /// The vCPU.
    pub vcpu: u32,
    /// The alternate view that it was on, by Xen's number; 0 where there are none.
    pub view: u16,
    /// What happened.
    pub cause: Cause,
    /// RIP then.
    pub rip: u64,
    /// CR3 then.
    pub cr3: u64,
    /// In ring 3.
    pub user: bool,
}

/// How the vCPU translated and read code at a request.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Mode {
    /// What decides how addresses are translated.
    pub paging: PagingMode,
    /// The bits of its code segment: 16, 32 or 64.
    pub bits: u32,
    /// The bases of its segments: ES, CS, SS, DS, FS, GS.
    pub bases: [u64; 6],
}

impl Mode {
    /// That of a request.
    #[must_use]
    pub fn of(slot: &Slot) -> Self {
        let (cr0, cr4, efer) = (word(slot, CR0), word(slot, CR4), word(slot, EFER));
        let paging = PagingMode { cr0, cr3: word(slot, CR3), cr4, efer };
        // The rights are the upper 12 bits: bit 9 is L, bit 10 D.
        let rights = half(slot, CS) >> 20;
        let bits = match (efer & EFER_LMA != 0 && rights & 1 << 9 != 0, rights & 1 << 10 != 0) {
            (true, _) => 64,
            (false, true) => 32,
            (false, false) => 16,
        };
        let [cs, ss, ds, es] =
            [0, 4, 8, 12].map(|n| if bits == 64 { 0 } else { u64::from(half(slot, CS_BASE + n)) });
        Self { paging, bits, bases: [es, cs, ss, ds, word(slot, FS_BASE), word(slot, FS_BASE + 8)] }
    }

    /// The address of an offset in the code segment.
    #[must_use]
    pub fn code(&self, offset: u64) -> u64 {
        let [_, cs, ..] = self.bases;
        cs.wrapping_add(offset)
    }
}

/// Where things lie.
const FLAGS: usize = 4;
const REASON: usize = 8;
const VCPU: usize = 12;
const VIEW: usize = 16;
const UNION: usize = 24;
const DATA: usize = 56;
const RIP: usize = 208;
const CR0: usize = 216;
const CR3: usize = 232;
const CR4: usize = 240;
const EFER: usize = 272;
/// Those of CS, SS, DS and ES.
const CS_BASE: usize = 320;
const FS_BASE: usize = 336;
const CS: usize = 352;
const CS_SELECTOR: usize = 386;
/// RAX to RDI and R8 to R15 in Xen's order, RFLAGS, and RIP behind DR6 and DR7.
const REGISTERS: usize = DATA;
const RFLAGS: usize = 184;

fn word(slot: &Slot, at: usize) -> u64 {
    slot.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn half(slot: &Slot, at: usize) -> u32 {
    slot.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn byte(slot: &Slot, at: usize) -> u8 {
    slot.get(at).copied().unwrap_or(0)
}

fn put(slot: &mut Slot, at: usize, bytes: &[u8]) {
    if let Some(place) = slot.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
        place.copy_from_slice(bytes);
    }
}

/// Why a request can't be read; its vCPU is to go on all the same.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Unreadable {
    /// The vCPU, as far as one can tell.
    pub vcpu: u32,
    /// The flags.
    pub flags: u32,
    /// The interface's version.
    pub version: u32,
    /// The reason given.
    pub reason: u32,
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// It is of another version, or of a reason that is not known.
    pub fn read(slot: &Slot) -> Result<Self, Unreadable> {
        let (version, flags, reason, vcpu) =
            (half(slot, 0), half(slot, FLAGS), half(slot, REASON), half(slot, VCPU));
        let unreadable = Unreadable { vcpu, flags, version, reason };
        let cause = cause(slot, reason).filter(|_| version == VERSION).ok_or(unreadable)?;
        let view = if flags & flag::ALTERNATE_P2M == 0 { 0 } else { half(slot, VIEW) as u16 };
        let user = half(slot, CS_SELECTOR) & 3 == 3;
        Ok(Self { flags, vcpu, view, cause, rip: word(slot, RIP), cr3: word(slot, CR3), user })
    }

    /// Whether its vCPU waits.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.flags & flag::VCPU_PAUSED != 0
    }
}

fn cause(slot: &Slot, reason: u32) -> Option<Cause> {
    let (first, second, third) = (word(slot, UNION), word(slot, UNION + 8), word(slot, UNION + 16));
    let more = half(slot, UNION + 24);
    let low = half(slot, UNION);
    Some(match reason {
        reason::MEM_ACCESS => Cause::Access { gfn: first, offset: second, gla: third, flags: more },
        // Until the guest has written XCR0 Xen keeps 0 for it, and runs the vCPU with x87 and SSE on.
        reason::WRITE_CTRLREG if low == control::XCR0 && third == 0 => {
            Cause::Control { index: low, new: second, old: XCR0_AT_FIRST }
        }
        reason::WRITE_CTRLREG => Cause::Control { index: low, new: second, old: third },
        reason::MOV_TO_MSR => Cause::Msr { index: u32::try_from(first).ok()?, new: second, old: third },
        reason::SOFTWARE_BREAKPOINT => {
            let (length, kind) = (half(slot, UNION + 16), byte(slot, UNION + 20));
            Cause::Breakpoint { gfn: first, kind, length }
        }
        reason::SINGLESTEP => Cause::Step,
        reason::GUEST_REQUEST => Cause::GuestRequest,
        reason::CPUID => {
            Cause::Cpuid { length: low, leaf: half(slot, UNION + 4), subleaf: half(slot, UNION + 8) }
        }
        reason::DESCRIPTOR_ACCESS => {
            let (table, write) = (byte(slot, UNION + 16), byte(slot, UNION + 17) != 0);
            Cause::Descriptor { table, write }
        }
        reason::EMUL_UNIMPLEMENTED => Cause::Unemulated,
        reason::IO_INSTRUCTION => {
            let (port, bytes) = (half(slot, UNION + 4) as u16, low);
            Cause::Io { port, bytes, input: byte(slot, UNION + 6) != 0, string: byte(slot, UNION + 7) != 0 }
        }
        _ => return None,
    })
}

/// The general registers of a vCPU in Xen's order: RAX RCX RDX RBX RSP RBP RSI RDI R8 to R15, which is the manual's.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct General {
    /// RAX to R15 in encoding order.
    pub gpr: [u64; 16],
    /// RFLAGS.
    pub rflags: u64,
    /// RIP.
    pub rip: u64,
}

impl General {
    /// Those that a request came with.
    #[must_use]
    pub fn of(slot: &Slot) -> Self {
        let mut gpr = [0; 16];
        for (n, register) in gpr.iter_mut().enumerate() {
            *register = word(slot, REGISTERS + 8 * n);
        }
        Self { gpr, rflags: word(slot, RFLAGS), rip: word(slot, RIP) }
    }
}

/// A response to be.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Response {
    /// The flags, but for those that follow from what is below.
    pub flags: u32,
    /// The reason that it is taken for.
    pub reason: u32,
    /// The vCPU.
    pub vcpu: u32,
    /// The view to go on on, by Xen's number.
    pub view: Option<u16>,
    /// The view to go back to behind one instruction.
    pub back: Option<u16>,
    /// Registers to go on with.
    pub registers: Option<General>,
    /// What a read of the instruction that is emulated gets.
    pub data: Option<[u8; 16]>,
    /// The instruction that is emulated, in the place of what is at RIP; there can be no registers beside it.
    pub code: Option<[u8; 16]>,
    /// What the access was, for Xen to see whether it still violates.
    pub access: Option<(u64, u32)>,
    /// Which control register was written.
    pub control: Option<u32>,
}

impl Response {
    /// As it goes into the ring.
    #[must_use]
    pub fn slot(&self) -> Slot {
        let mut slot = [0; SLOT];
        let mut flags = self.flags;
        put(&mut slot, REASON, &self.reason.to_le_bytes());
        put(&mut slot, VCPU, &self.vcpu.to_le_bytes());
        put(&mut slot, 0, &VERSION.to_le_bytes());
        if let Some(view) = self.view {
            flags |= flag::ALTERNATE_P2M;
            put(&mut slot, VIEW, &view.to_le_bytes());
        }
        if let Some((gfn, access)) = self.access {
            put(&mut slot, UNION, &gfn.to_le_bytes());
            put(&mut slot, UNION + 24, &access.to_le_bytes());
        }
        if let Some(index) = self.control {
            put(&mut slot, UNION, &index.to_le_bytes());
        }
        if let Some(back) = self.back {
            // It lies where the frame does, which nobody looks at then.
            flags |= flag::FAST_SINGLESTEP;
            put(&mut slot, UNION, &back.to_le_bytes());
        }
        if let Some(General { gpr, rflags, rip }) = self.registers {
            flags |= flag::SET_REGISTERS;
            for (n, register) in gpr.iter().enumerate() {
                put(&mut slot, REGISTERS + 8 * n, &register.to_le_bytes());
            }
            put(&mut slot, RFLAGS, &rflags.to_le_bytes());
            put(&mut slot, RIP, &rip.to_le_bytes());
        }
        if let Some(data) = self.data {
            flags |= flag::SET_EMUL_READ_DATA;
            put(&mut slot, DATA, &(data.len() as u32).to_le_bytes());
            put(&mut slot, DATA + 4, &data);
        }
        if let Some(code) = self.code {
            flags |= flag::SET_EMUL_INSN_DATA;
            put(&mut slot, DATA, &code);
        }
        put(&mut slot, FLAGS, &flags.to_le_bytes());
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A request as Xen makes them.
    pub fn request(vcpu: u32, why: u32, content: &[u8]) -> Slot {
        let mut slot = [0; SLOT];
        put(&mut slot, 0, &VERSION.to_le_bytes());
        put(&mut slot, FLAGS, &flag::VCPU_PAUSED.to_le_bytes());
        put(&mut slot, REASON, &why.to_le_bytes());
        put(&mut slot, VCPU, &vcpu.to_le_bytes());
        put(&mut slot, UNION, content);
        slot
    }

    #[test]
    fn a_request_is_read_field_by_field() {
        let mut content = 7_u64.to_le_bytes().to_vec();
        content.extend(0x123_u64.to_le_bytes());
        content.extend(0xffff_8000_0000_0123_u64.to_le_bytes());
        content.extend((2 | access::GLA_VALID).to_le_bytes());
        let mut slot = request(3, reason::MEM_ACCESS, &content);
        put(&mut slot, RIP, &0x1000_u64.to_le_bytes());
        let read = Request::read(&slot).unwrap();
        let cause = Cause::Access { gfn: 7, offset: 0x123, gla: 0xffff_8000_0000_0123, flags: 10 };
        assert_eq!((read.vcpu, read.cause, read.rip, read.waits()), (3, cause, 0x1000, true));
        let io = request(0, reason::IO_INSTRUCTION, &[4, 0, 0, 0, 0x80, 0, 1, 0]);
        let cause = Cause::Io { port: 0x80, bytes: 4, input: true, string: false };
        assert_eq!(Request::read(&io).unwrap().cause, cause);
    }

    #[test]
    fn what_is_not_known_is_told_with_its_vcpu() {
        let unreadable = Request::read(&request(2, 99, &[])).unwrap_err();
        assert_eq!((unreadable.vcpu, unreadable.reason), (2, 99));
        let mut old = request(1, reason::CPUID, &[]);
        put(&mut old, 0, &6_u32.to_le_bytes());
        assert_eq!(Request::read(&old).unwrap_err().version, 6);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), SLOT)) {
            let slot: Slot = bytes.try_into().unwrap();
            let _ = (Request::read(&slot), General::of(&slot));
        }

        #[test]
        fn registers_of_a_response_lie_where_those_of_a_request_do(gpr: [u64; 16], rip: u64, rflags: u64) {
            let registers = General { gpr, rflags, rip };
            let slot = Response { registers: Some(registers), ..Response::default() }.slot();
            prop_assert_eq!(General::of(&slot), registers);
        }
    }
}
