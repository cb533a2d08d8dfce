//! What Xen's emulator can be given to do: it reads code and data from the guest's own frames, whatever a view shows there.

use vmtree_api::{PAGE_SIZE, ViewId};

use super::code::{self, decode};
use super::table::{Act, Plan};
use crate::events::engine::Parked;
use crate::events::wire::{Cause, Response, flag, reason};
use crate::world::World;

impl World {
    /// Does otherwise what the emulator would not do as the vCPU's view has it.
    pub fn fit_emulator(&self, parked: &Parked, plan: &mut Plan) {
        let fits = match plan.act {
            Act::EmulateDry => self.code_of_view(parked).is_none() && !self.reads_others(parked),
            Act::EmulateWith(_) => self.code_of_view(parked).is_none(),
            _ => true,
        };
        if fits {
            return;
        }
        let written = self.instruction(parked.event.view, &parked.mode, parked.request.rip);
        if plan.act == Act::EmulateDry && written.as_ref().is_some_and(code::only_writes) {
            plan.act = Act::Past;
            return;
        }
        plan.act = if let Act::EmulateWith(value) = plan.act { Act::DryWith(value) } else { Act::Dry };
    }

    /// The instruction as the vCPU's view has it, where the guest's own frames have another one.
    fn code_of_view(&self, parked: &Parked) -> Option<[u8; 16]> {
        let view = parked.event.view;
        if self.views.views.get(&view.0).is_none_or(|view| view.shown.is_empty()) {
            return None;
        }
        let at = parked.mode.code(parked.request.rip);
        let (mut here, mut own) = ([0; 16], [0; 16]);
        let read = self.read_virtual(view, &parked.mode, at, &mut here);
        let own_read = self.read_virtual(ViewId(0), &parked.mode, at, &mut own);
        let instruction = decode(here.get(..read)?, parked.mode.bits, parked.request.rip)?;
        let length = instruction.len();
        (own_read < length || here.get(..length) != own.get(..length)).then_some(here)
    }

    /// Whether the instruction reads memory that its view shows otherwise.
    fn reads_others(&self, parked: &Parked) -> bool {
        let (view, mode) = (parked.event.view, &parked.mode);
        if self.views.views.get(&view.0).is_none_or(|view| view.shown.is_empty()) {
            return false;
        }
        let Some(instruction) = self.instruction(view, mode, parked.request.rip) else { return true };
        let other = |at: u64| {
            let frame = self.translate(view, mode, at).map(|gpa| gpa / PAGE_SIZE);
            frame.is_none_or(|frame| self.views.frame(view, frame) != frame)
        };
        let sources = code::sources(&instruction, mode, &parked.general);
        sources.iter().any(|at| other(*at) || other(at.wrapping_add(15)))
    }

    /// Fills in how Xen is to emulate the instruction.
    pub fn emulate(&mut self, parked: &Parked, act: Act, response: &mut Response) {
        response.flags |= flag::EMULATE;
        match act {
            Act::EmulateDry => response.flags |= flag::EMULATE_NOWRITE,
            Act::EmulateWith(data) => response.data = Some(data),
            _ => response.code = self.code_of_view(parked),
        }
        if let Cause::Io { .. } = parked.request.cause {
            // Xen's emulator does what is at RIP, whatever it is, but is not asked for IN and OUT by their own reason.
            response.reason = reason::DESCRIPTOR_ACCESS;
        }
        if response.code.is_some() {
            // The one reason for which it takes the instruction from us.
            response.reason = reason::SOFTWARE_BREAKPOINT;
        }
        self.ask_model(parked, response);
    }
}
