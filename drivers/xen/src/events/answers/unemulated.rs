//! What Xen's emulator was given and can't do: the vCPU does it itself, on another view, or with rights lifted.

use std::time::Instant;

use vmtree_api::events::Inject;
use vmtree_api::{Error, ErrorKind, PAGE_SIZE, Result};

use super::table::{Act, Plan, Stage};
use crate::error::refused;
use crate::events::engine::{Answered, Parked};
use crate::events::wire::{Cause, General, Request, Response, flag};
use crate::world::World;

const OP: &str = "answer";
/// #UD.
const UNDEFINED: Inject = Inject::Exception { vector: 6, error: None };

/// What was in memory before an instruction with rights lifted.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The frame, and where in it.
    frame: u64,
    offset: usize,
    before: Vec<u8>,
}

/// What a lift has beside its first frame.
#[derive(Clone, Debug, Default)]
pub struct Lifted {
    /// Further frames whose rights are lifted.
    pub frames: Vec<u64>,
    /// What is to be there again behind the instruction.
    pub kept: Vec<Kept>,
}

impl World {
    /// Xen asks, for its emulator could not.
    pub fn unemulated(&mut self, request: &Request) {
        let vcpu = request.vcpu;
        let mut response = Response { flags: flag::VCPU_PAUSED, vcpu, ..Response::default() };
        match self.events.emulated.remove(&vcpu) {
            Some((parked, act)) if matches!(parked.request.cause, Cause::Access { .. }) => {
                self.by_itself(&parked, act, &mut response);
            }
            _ => {
                log::error!("Xen's emulator can't do the instruction at {:#x} of vCPU {vcpu}", request.rip);
                // As Xen does where nobody is asked: tried again, it would come to the same without end.
                self.undefined(vcpu);
            }
        }
        self.respond(response);
    }

    fn undefined(&mut self, vcpu: u32) {
        if let Err(error) = self.inject_into(OP, vcpu, UNDEFINED) {
            log::error!("{error}");
        }
    }

    /// Nobody is left to be told what does not work.
    fn by_itself(&mut self, parked: &Parked, act: Act, response: &mut Response) {
        let done = match act {
            Act::EmulateDry => self.carry_out_apart(parked, Act::Dry, response),
            Act::EmulateWith(value) => self.carry_out_apart(parked, Act::DryWith(value), response),
            _ => self.step_on(parked, Stage::Open, response),
        };
        let Err(error) = done else { return };
        let (vcpu, rip) = (parked.request.vcpu, parked.request.rip);
        if act == Act::EmulateDry {
            self.go_past(parked, &error, response);
            return;
        }
        log::error!("the access of vCPU {vcpu} at {rip:#x} takes place as if it had been continued: {error}");
        if act != Act::Emulate
            && let Err(error) = self.step_on(parked, Stage::Open, response)
        {
            log::error!("{error}");
        }
    }

    /// A wall denies what can't be carried out without its writes.
    ///
    /// # Errors
    /// It is no wall, or not to deny.
    pub fn insist(
        &mut self,
        parked: &Parked,
        plan: &Plan,
        error: Error,
        response: &mut Response,
    ) -> Result<()> {
        if !parked.refused || plan.act != Act::Dry || plan.memory.is_some() || error.kind() == ErrorKind::Gone
        {
            return Err(error);
        }
        self.go_past(parked, &error, response);
        Ok(())
    }

    /// Nothing of an instruction takes place; where even its length is not known, it is an undefined one.
    fn go_past(&mut self, parked: &Parked, why: &Error, response: &mut Response) {
        let (vcpu, rip) = (parked.request.vcpu, parked.request.rip);
        log::error!(
            "vCPU {vcpu} does not carry out the instruction at {rip:#x}, whose write was denied: {why}"
        );
        let next =
            self.instruction(parked.event.view, &parked.mode, parked.request.rip).map(|it| it.next_ip());
        let general = self.general(parked, parked.dirty);
        let (Some(rip), Ok(general)) = (next, general) else { return self.undefined(vcpu) };
        let registers = Some(General { rip, ..general });
        response.registers = registers;
        let ran = self.stood(vcpu);
        self.events.answered.insert(vcpu, Answered { at: Instant::now(), ran, registers, write: None });
    }

    /// Carries an instruction out without its writes, or with other data.
    ///
    /// # Errors
    /// Nothing is changed.
    pub fn carry_out_apart(&mut self, parked: &Parked, act: Act, response: &mut Response) -> Result<()> {
        if self.views.on {
            return self.step_dry(parked, act, response);
        }
        let (parts, value) = self.apart(parked, act)?;
        let Cause::Access { gfn, .. } = parked.request.cause else { return Ok(()) };
        self.lift_frame(parked.request.vcpu, gfn)?;
        for part in &parts {
            let mut before = vec![0; part.bytes];
            let at = part.frame * PAGE_SIZE + part.offset as u64;
            let data = value.map(|value| part.of(&value));
            let memory = self.shared.memory.mappings();
            let kept = memory.read(at, &mut before).and_then(|_| match &data {
                Some(data) => memory.write(at, data).map(drop),
                None => Ok(()),
            });
            self.events.lifted.kept.push(Kept { frame: part.frame, offset: part.offset, before });
            if let Err(error) = kept {
                self.events.lifted.kept.pop();
                self.finish_lift();
                return Err(refused(OP, "the frame can't be read", error));
            }
        }
        Ok(())
    }

    /// Puts back what the instruction has changed, byte by byte: others may write beside it. The domain is paused.
    pub fn put_kept(&mut self) {
        for Kept { frame, offset, before } in std::mem::take(&mut self.events.lifted.kept).into_iter().rev() {
            let memory = self.shared.memory.mappings();
            let (at, mut now) = (frame * PAGE_SIZE + offset as u64, vec![0; before.len()]);
            let mut put = memory.read(at, &mut now).map(drop);
            let mut from = 0;
            for run in now
                .iter()
                .zip(&before)
                .collect::<Vec<_>>()
                .chunk_by(|one, other| (one.0 == one.1) == (other.0 == other.1))
            {
                let bytes: Vec<u8> = run.iter().map(|(_, before)| **before).collect();
                let differs = run.first().is_some_and(|(now, before)| now != before);
                if differs && put.is_ok() {
                    put = memory.write(at + from, &bytes).map(drop);
                }
                from += bytes.len() as u64;
            }
            if let Err(error) = put {
                log::error!("what was denied stays in frame {frame:#x}: {error}");
            }
        }
    }
}
