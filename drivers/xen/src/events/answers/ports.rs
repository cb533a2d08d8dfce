//! IN and OUT, where one answer to Xen is not enough.
//!
//! An OUT of another value: Xen's emulator is given an OUT of ours in front of the guest's own, with that value in RAX. So the
//! vCPU comes to the guest's OUT once more, is stopped there, and goes on behind it with its own RAX.
//!
//! An IN that a device model is asked for: Xen's emulator gives up once it has asked, RAX gets the answer, and the vCPU, which is at
//! the IN still, is stopped there once more, to go on behind it. That it was stepped tells that from the next round of a loop: had the
//! emulator done the IN, the end of a step would come first. On processors that Xen can't step RF tells it: the emulator clears
//! it with each instruction that it has done (on VMX it does not outlive the IN's exit).

use std::time::{Duration, Instant};

use vmtree_api::events::{Detail, Event};
use vmtree_api::x86::Reg;
use vmtree_api::{Error, ErrorKind, RegValue, Result};

use super::code;
use super::out::Out;
use crate::events::decode::low;
use crate::events::engine::{Answered, Parked};
use crate::events::wire::{Cause, General, Mode, Request, Response, Slot, flag, reason};
use crate::world::World;

const OP: &str = "answer";
/// How long an OUT may take to come back; meanwhile the guest may take interrupts.
const BACK: Duration = Duration::from_secs(1);
/// RFLAGS.RF.
pub const RESUME: u64 = 1 << 16;

/// An OUT with another value, until the vCPU has its own RAX again.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    since: Instant,
    out: Out,
    /// What tells it from others beside its place, its stack and RAX: the address space, and the port.
    cr3: u64,
    port: u16,
}

/// An IN that Xen's emulator was given, and where the vCPU goes on.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    at: u64,
    past: u64,
    port: u16,
    /// A step, and not RF, tells it from the next round of a loop.
    pub stepped: bool,
}

/// An OUT of so many bytes to this port in code of so many bits; and its length.
fn out(port: u16, bytes: u32, bits: u32) -> ([u8; 16], u64) {
    let wide = u8::from(bytes > 1);
    let prefix = (bytes == 2 && bits != 16 || bytes == 4 && bits == 16).then_some(0x66);
    let (opcode, immediate) =
        if port <= 0xff { (0xe6 | wide, Some(port as u8)) } else { (0xee | wide, None) };
    let mut code = [0x90; 16];
    let instruction = prefix.into_iter().chain([opcode]).chain(immediate);
    let mut length = 0;
    for (byte, place) in instruction.zip(&mut code) {
        *place = byte;
        length += 1;
    }
    (code, length)
}

impl World {
    /// Has an OUT carry another value.
    ///
    /// # Errors
    /// Nothing is changed.
    pub fn send(
        &mut self,
        parked: &Parked,
        value: u64,
        length: u64,
        general: General,
        response: &mut Response,
    ) -> Result<()> {
        let Cause::Io { port, bytes, .. } = parked.request.cause else { return Ok(()) };
        let ([rax, _, rdx, ..], [_, _, _, _, rsp, ..]) = (general.gpr, general.gpr);
        if port > 0xff && rdx as u16 != port {
            let why = "RDX was set meanwhile, which has the port: set rax and rip as well, or continue";
            return Err(Error::new(ErrorKind::Invalid, OP, why));
        }
        let (vcpu, at) = (parked.request.vcpu, parked.request.rip);
        let (code, ours) = out(port, bytes, parked.mode.bits);
        let value = rax & !low(bytes) | value & low(bytes);
        let narrow = if parked.mode.bits == 64 { u64::MAX } else { 0xffff_ffff };
        let before = at.wrapping_sub(ours) & narrow;
        let (since, past, cr3) = (Instant::now(), at.wrapping_add(length) & narrow, parked.request.cr3);
        self.events.sent.push(Sent { since, out: Out { vcpu, at, past, rsp, value, rax }, cr3, port });
        // Before RAX is another one.
        let noted = self.note_ring();
        let word = |reg: Reg, value| (reg.id(), RegValue::Word(value));
        let changes = [word(Reg::Rax, value), word(Reg::Rip, before)];
        if let Err(error) = noted.and_then(|()| self.put_registers(OP, vcpu, &changes)) {
            self.events.sent.pop();
            self.note_held();
            return Err(error);
        }
        response.flags |= flag::EMULATE;
        // The one reason for which Xen takes the instruction from us.
        response.reason = reason::SOFTWARE_BREAKPOINT;
        response.code = Some(code);
        Ok(())
    }

    /// Has Xen's emulator do an IN, and keeps in mind where it ends, should a device model be asked.
    pub fn ask_model(&mut self, parked: &Parked, response: &mut Response) {
        let Cause::Io { port, input: true, string: false, .. } = parked.request.cause else { return };
        let (vcpu, at) = (parked.request.vcpu, parked.request.rip);
        self.events.asked.remove(&vcpu);
        // Domains without devices of their own have no device model; and an instruction of ours takes the registers' place.
        if self.info.devices & !1 == 0 || response.code.is_some() {
            return;
        }
        let Some(instruction) = self.instruction(parked.event.view, &parked.mode, at) else { return };
        let Ok(mut general) = self.general(parked, parked.dirty) else { return };
        let stepped = self.steps;
        self.events.asked.insert(vcpu, Asked { at, past: instruction.next_ip(), port, stepped });
        if let Err(error) = self.sync_steps(OP) {
            log::error!("an IN of vCPU {vcpu} may be told twice: {error}");
        }
        if !stepped {
            general.rflags |= RESUME;
        }
        response.registers = Some(general);
    }

    /// Whether a vCPU has come back to an IN or OUT that it has done; it then goes on behind it.
    pub fn has_come_back(&mut self, request: &Request, slot: &Slot) -> bool {
        let Cause::Io { port, input, .. } = request.cause else { return false };
        let mut general = General::of(slot);
        let [rax, _, _, _, rsp, ..] = general.gpr;
        let sent = !input;
        if input {
            let asked = self.events.asked.remove(&request.vcpu);
            let here = |asked: &Asked| asked.at == request.rip && asked.port == port;
            let marked = |asked: &Asked| asked.stepped || general.rflags & RESUME != 0;
            let Some(asked) = asked.filter(|asked| here(asked) && marked(asked)) else {
                return false;
            };
            (general.rip, general.rflags) = (asked.past, general.rflags & !RESUME);
        } else {
            let place = self.events.sent.iter().position(|Sent { out, cr3, port: of, .. }| {
                (out.at, *cr3, out.rsp, *of, out.value) == (request.rip, request.cr3, rsp, port, rax)
            });
            let Some(place) = place else { return false };
            let Sent { out, .. } = self.events.sent.remove(place);
            general.rip = out.past;
            let [rax, ..] = &mut general.gpr;
            *rax = out.rax;
        }
        let vcpu = request.vcpu;
        let (ran, registers) = (self.stood(vcpu), Some(general));
        self.events.answered.insert(vcpu, Answered { at: Instant::now(), ran, registers, write: None });
        let flags = request.flags & flag::VCPU_PAUSED;
        self.respond(Response {
            flags,
            vcpu,
            reason: reason::IO_INSTRUCTION,
            registers,
            ..Response::default()
        });
        if sent {
            self.note_held();
        }
        true
    }

    /// Whether an OUT is on its way for which Xen must tell of IN and OUT.
    pub fn waits_for_out(&mut self) -> bool {
        let is_late = |sent: &Sent| sent.since.elapsed() > BACK;
        if self.pauses == 0 && self.events.sent.iter().any(is_late) {
            for Sent { out, .. } in self.events.sent.extract_if(.., |sent| is_late(sent)) {
                log::error!("vCPU {} did not come back to its OUT at {:#x}", out.vcpu, out.at);
            }
            self.note_held();
        }
        !self.events.sent.is_empty()
    }

    /// Gives vCPUs their RAX back that have not come back to their OUT; the domain stands still.
    pub fn end_outs(&mut self) {
        for sent in std::mem::take(&mut self.events.sent) {
            if let Err(error) = sent.out.end(&*self.xen) {
                log::error!("RAX of vCPU {} is lost: {error}", sent.out.vcpu);
            }
        }
    }

    /// The OUTs that are on their way, for whoever undoes us.
    pub fn outs(&self) -> impl Iterator<Item = Out> {
        self.events.sent.iter().map(|sent| sent.out)
    }

    /// What OUTS writes is in memory.
    pub fn read_outs(&self, event: &mut Event, mode: &Mode, general: &General) {
        let Detail::Io { bytes, value: Some(value), .. } = &mut event.detail else { return };
        let Some(instruction) = self.instruction(event.view, mode, event.rip) else { return };
        let Some(at) = code::sources(&instruction, mode, general).first().copied() else { return };
        let mut buf = [0; 4];
        let wanted = buf.get_mut(..usize::from(*bytes)).unwrap_or_default();
        self.read_virtual(event.view, mode, at, wanted);
        *value = u32::from_le_bytes(buf);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_out_of_ours_is_one_of_the_same_size_and_port() {
        for (port, bytes, bits) in [
            (0x80, 1, 64),
            (0x80, 2, 64),
            (0x80, 4, 64),
            (0x3f8, 1, 32),
            (0x3f8, 2, 32),
            (0x3f8, 4, 16),
            (1, 2, 16),
        ] {
            let (bytes_of, length) = out(port, bytes, bits);
            let instruction = code::decode(&bytes_of, bits, 0).unwrap();
            assert_eq!(instruction.len() as u64, length);
            let text = format!("{:?}", instruction.code());
            let size = ["AL", "AX", "EAX"][bytes.trailing_zeros() as usize];
            let wanted = if port > 0xff { format!("Out_DX_{size}") } else { format!("Out_imm8_{size}") };
            assert_eq!(text, wanted);
            assert!(port > 0xff || u16::from(instruction.immediate8()) == port);
        }
    }
}
