//! An access that goes on, of an instruction that does another one against the rules: with all rights it would do both, and
//! nobody would be told of the second, nor a wall asked. It is stepped on a view of Xen's on which the first frame alone has all rights.

use vmtree_api::Result;

use super::code;
use super::dry::Dry;
use crate::events::engine::Parked;
use crate::events::wire::{Cause, General, Response};
use crate::views::rules::ALL;
use crate::world::World;

const OP: &str = "answer";
/// What an operand needs, by Xen's numbers of rights.
const READ: u8 = 1;
const WRITE: u8 = 3;

impl World {
    /// Other frames on which the instruction of an access would go against the rules, and their rights. Of addresses in vector
    /// registers that can't be told.
    fn violates_also(&self, parked: &Parked, general: &General) -> Vec<(u64, u8)> {
        let Cause::Access { gfn, .. } = parked.request.cause else { return Vec::new() };
        let (view, mode) = (parked.event.view, &parked.mode);
        let Some(of) = self.views.views.get(&view.0) else { return Vec::new() };
        let alone = of.rights.iter().all(|(frames, _)| *frames == (gfn..gfn + 1));
        if alone {
            return Vec::new();
        }
        let Some(instruction) = self.instruction(view, mode, parked.request.rip) else { return Vec::new() };
        let mut others = Vec::new();
        for operand in code::operands(&instruction, mode, general) {
            let needs = if operand.written { WRITE } else { READ };
            for frame in self.frames_of(view, mode, &operand) {
                let rights = of.rights.at(frame);
                if frame != gfn && rights & needs != needs && !others.contains(&(frame, rights)) {
                    others.push((frame, rights));
                }
            }
        }
        others
    }

    /// Whether an access goes on on a view of its own, so that what else the instruction does against the rules is told.
    pub fn step_guarded(&mut self, parked: &Parked, response: &mut Response) -> bool {
        let guarded = self.guard(parked, response);
        guarded.unwrap_or_else(|error| {
            let (vcpu, rip) = (parked.request.vcpu, parked.request.rip);
            log::error!(
                "what else vCPU {vcpu} does at {rip:#x} takes place, whatever the rules are: {error}"
            );
            false
        })
    }

    fn guard(&mut self, parked: &Parked, response: &mut Response) -> Result<bool> {
        let Cause::Access { gfn, .. } = parked.request.cause else { return Ok(false) };
        let (vcpu, like, at) = (parked.request.vcpu, parked.event.view, parked.request.rip);
        let under_way = self.events.dry.iter().find(|dry| dry.guards(vcpu, parked.request.view, at));
        if let Some(view) = under_way.map(Dry::view) {
            self.set_access(OP, view, gfn..gfn + 1, ALL)?;
            (response.view, response.access) = (Some(view), None);
            return Ok(true);
        }
        let general = self.general(parked, parked.dirty)?;
        let others = self.violates_also(parked, &general);
        if others.is_empty() {
            return Ok(false);
        }
        let view = self.new_view(OP, ALL)?;
        self.events.dry.push(Dry::guard(vcpu, view, like, at));
        // What a view shows at a frame has all rights first.
        let shown = self.show_as(OP, view, like);
        let limited = shown.and_then(|()| {
            let mut each = others.iter();
            each.try_for_each(|(frame, rights)| self.set_access(OP, view, *frame..frame + 1, *rights))
        });
        let stepped = limited.and_then(|()| self.depart(vcpu, view, like, response));
        stepped.inspect_err(|_| self.sweep_dry()).map(|()| true)
    }

    /// The same without alternate views: Xen's emulator would do all of it, so the rights of the one frame are lifted.
    pub fn lifts_instead(&mut self, parked: &Parked) -> bool {
        if self.views.on || !self.steps || !matches!(parked.request.cause, Cause::Access { .. }) {
            return false;
        }
        let in_the_middle = self.events.lift.is_some_and(|lift| lift.vcpu == parked.request.vcpu);
        let general = self.general(parked, parked.dirty);
        in_the_middle || general.is_ok_and(|general| !self.violates_also(parked, &general).is_empty())
    }
}
