//! Answers: what the table says, carried out.

use std::thread;
use std::time::{Duration, Instant};

use vmtree_api::events::{Inject, Verdict};
use vmtree_api::{Access, Error, ErrorKind, PAGE_SIZE, Result, ViewId};

use super::code;
use super::table::{self, Act, Facts, Plan, Stage};
use crate::again::again;
use crate::error::{is, number};
use crate::events::decode::{merged, violated};
use crate::events::engine::{Answered, Away, Parked};
use crate::events::wire::{Cause, General, Response, flag};
use crate::hypervisor::{Ran, Trap};
use crate::injection;
use crate::registers::convert;
use crate::world::World;

const OP: &str = "answer";
/// The type of int3 (X86_ET_SW_EXC).
const SOFTWARE: u8 = 6;
/// How long a vCPU may take to stop at an event. It is some microseconds.
const STOPS: Duration = Duration::from_millis(20);

impl World {
    /// Lets a held vCPU go with this verdict.
    ///
    /// # Errors
    /// As [`vmtree_api::events::Held::answer`]; the vCPU is then held as before.
    pub fn answer(&mut self, vcpu: u32, serial: u64, verdict: &Verdict) -> Result<()> {
        let parked = self.events.held.get(&vcpu).filter(|parked| parked.serial == serial).cloned();
        let Some(parked) = parked else {
            return Err(Error::new(ErrorKind::Stale, OP, "the event is no longer waiting for an answer"));
        };
        match self.perform(&parked, verdict) {
            Err(error) if *verdict == Verdict::Continue && error.kind() != ErrorKind::Gone => {
                log::error!("a vCPU could not go on as it should: {error}");
                let response = Response { flags: flag::VCPU_PAUSED, vcpu, ..Response::default() };
                self.events.held.remove(&vcpu);
                self.respond(response);
            }
            Err(error) => {
                if let Some(parked) = self.events.held.get_mut(&vcpu) {
                    parked.refused |= *verdict == Verdict::Deny;
                }
                return Err(error);
            }
            Ok(()) => {}
        }
        self.events.held.remove(&vcpu);
        self.note_held();
        self.settle_ring();
        Ok(())
    }

    fn facts(&self, parked: &Parked) -> Facts {
        let flags = if let Cause::Access { flags, .. } = parked.request.cause { flags } else { 0 };
        let access = violated(flags, self.allowed(&parked.request, parked.event.view));
        Facts {
            views: self.views.on,
            moved: parked.moved,
            writes: access == Access::WRITE,
            fetches: access == Access::EXECUTE,
            user: parked.request.user,
            view: parked.event.view,
        }
    }

    /// Carries a verdict out. On failure nothing is answered.
    ///
    /// # Errors
    /// As [`World::answer`].
    pub fn perform(&mut self, parked: &Parked, verdict: &Verdict) -> Result<()> {
        let facts = self.facts(parked);
        let mut plan = table::plan(&parked.request.cause, verdict, facts)?;
        self.check(parked, &plan)?;
        self.fit_emulator(parked, &mut plan);
        let length = self.length(parked, &plan)?;
        let vcpu = parked.request.vcpu;
        let mut dirty = parked.dirty;
        if !plan.changes.is_empty() {
            self.put_registers(OP, vcpu, &plan.changes)?;
            dirty = true;
        }
        if let Some((index, value)) = plan.msr {
            self.write_msr(OP, vcpu, index, value).map_err(|error| match error.kind() {
                ErrorKind::NotFound => Error::new(ErrorKind::Unsupported, OP, error.why()),
                _ => error,
            })?;
            dirty = true;
        }
        if let Some(what) = plan.inject {
            self.inject_into(OP, vcpu, what)?;
        }
        let response = self.response(parked, &plan, length, dirty)?;
        self.put_memory(parked, &plan);
        self.remember(parked, &plan, &response);
        if let Some(view) = plan.view {
            self.views.set_current(vcpu, view);
            self.events.away.remove(&vcpu);
        }
        self.respond(response);
        Ok(())
    }

    /// What must be so before anything is changed.
    fn check(&self, parked: &Parked, plan: &Plan) -> Result<()> {
        if let Some(view) = plan.view {
            self.known(OP, view)?;
        }
        if let Act::Step(Stage::On(view)) = plan.act {
            self.known(OP, view)?;
        }
        if let Some(what) = plan.inject {
            injection::check(what)?;
        }
        let Some(value) = plan.memory else { return Ok(()) };
        let written = self.instruction(parked.event.view, &parked.mode, parked.request.rip);
        let Some(bytes) = written.as_ref().and_then(code::writes) else {
            let why = "the instruction reads what it writes, or writes several values: it can be denied, but not replaced";
            return Err(Error::new(ErrorKind::Unsupported, OP, why));
        };
        if bytes < 16 && value >> (8 * bytes) != 0 {
            let why = format!("{value:#x} does not fit in {bytes} bytes");
            return Err(Error::new(ErrorKind::OutOfRange, OP, why));
        }
        Ok(())
    }

    /// The length of an instruction that the vCPU is to go on behind.
    fn length(&self, parked: &Parked, plan: &Plan) -> Result<u64> {
        if !matches!(plan.act, Act::Past | Act::Send) {
            return Ok(0);
        }
        match parked.request.cause {
            Cause::Cpuid { length, .. } | Cause::Breakpoint { length, .. } => Ok(u64::from(length)),
            _ => self
                .instruction(parked.event.view, &parked.mode, parked.request.rip)
                .map(|instruction| instruction.len() as u64)
                .ok_or_else(|| {
                    Error::new(
                        ErrorKind::Unsupported,
                        OP,
                        "the instruction can't be read, so it can't be skipped",
                    )
                }),
        }
    }

    fn response(&mut self, parked: &Parked, plan: &Plan, length: u64, dirty: bool) -> Result<Response> {
        let (vcpu, cause) = (parked.request.vcpu, parked.request.cause);
        let mut response =
            Response { flags: flag::VCPU_PAUSED, vcpu, reason: table::reason(&cause), ..Response::default() };
        response.view = plan.view.map(|view| self.views.xen(view));
        if let Cause::Access { gfn, flags, .. } = cause {
            response.access = Some((gfn, flags));
        }
        if let Cause::Control { index, .. } = cause {
            response.control = Some(index);
        }
        match plan.act {
            Act::Done if cause == Cause::Step && plan.is_plain() => self.open_window(parked, &mut response),
            Act::Done | Act::Again => {}
            Act::Drop => response.flags |= flag::DENY,
            Act::Past => {
                let mut general = self.general(parked, dirty)?;
                general.rip = parked.request.rip.wrapping_add(length);
                if let Some(result) = plan.result {
                    put_result(&mut general, &cause, result);
                }
                response.registers = Some(general);
            }
            Act::Deliver => self.deliver(parked)?,
            Act::Send => {
                let general = self.general(parked, dirty)?;
                self.send(parked, plan.result.unwrap_or(0) as u64, length, general, &mut response)?;
            }
            Act::Emulate if self.lifts_instead(parked) => self.lift(parked)?,
            Act::Emulate | Act::EmulateDry | Act::EmulateWith(_) => {
                self.emulate(parked, plan.act, &mut response);
            }
            Act::Dry | Act::DryWith(_) => {
                let done = self.carry_out_apart(parked, plan.act, &mut response);
                done.or_else(|error| self.insist(parked, plan, error, &mut response))?;
            }
            Act::Step(stage) => self.step_on(parked, stage, &mut response)?,
        }
        // What Xen has gone past is to fault at the instruction itself.
        let faults = matches!(plan.inject, Some(Inject::PageFault { .. } | Inject::Exception { .. }));
        if faults && table::is_past(&cause) && !parked.moved {
            let mut general = self.general(parked, true)?;
            general.rip = parked.request.rip;
            response.registers = Some(general);
        }
        Ok(response)
    }

    /// The general registers that the vCPU has now.
    ///
    /// # Errors
    /// Those of Xen.
    pub fn general(&mut self, parked: &Parked, dirty: bool) -> Result<General> {
        if dirty { self.general_now(parked.request.vcpu) } else { Ok(parked.general) }
    }

    /// The general registers of a vCPU that stands still.
    ///
    /// # Errors
    /// Those of Xen.
    pub fn general_now(&mut self, vcpu: u32) -> Result<General> {
        let regs = convert::all(&self.cpu_record(OP, vcpu)?, vcpu);
        Ok(General { gpr: regs.gpr, rflags: regs.rflags, rip: regs.rip })
    }

    /// int3, as it would have come.
    fn deliver(&mut self, parked: &Parked) -> Result<()> {
        let Cause::Breakpoint { kind, length, .. } = parked.request.cause else { return Ok(()) };
        let kind = if kind == 0 { SOFTWARE } else { kind };
        let trap = Trap { vector: 3, kind, error: None, length: length as u8, cr2: 0 };
        match self.xen.inject(parked.request.vcpu, trap) {
            // What was injected comes first; then the instruction is tried again.
            Err(error) if is(&error, number::EBUSY) => Ok(()),
            Err(error) => Err(self.refused(OP, "Xen does not deliver the breakpoint", error)),
            Ok(()) => Ok(()),
        }
    }

    /// One instruction on another of Xen's views, then back.
    ///
    /// # Errors
    /// Nothing is changed.
    pub fn step_on(&mut self, parked: &Parked, stage: Stage, response: &mut Response) -> Result<()> {
        let to = match stage {
            Stage::Open => self.views.opened(parked.event.view),
            Stage::On(view) => self.views.xen(view),
        };
        if !self.views.on {
            return self.lift(parked);
        }
        if stage == Stage::Open && self.step_guarded(parked, response) {
            return Ok(());
        }
        response.access = None;
        self.step_away(to, parked.event.view, response);
        Ok(())
    }

    /// Has a vCPU do one instruction on a view, and then be where it belongs, or is about to be.
    fn step_away(&mut self, at: u16, home: ViewId, response: &mut Response) {
        let vcpu = response.vcpu;
        let back = self.views.pending.remove(&vcpu).unwrap_or_else(|| self.views.xen(home));
        response.view = Some(at);
        // Who steps for somebody else as well is put back by the answer to that step: by itself, Xen would end its steps.
        let told = self.events.stepped.contains(&vcpu);
        response.back = (!told).then_some(back);
        if at != back {
            self.events.away.insert(vcpu, Away { at, home: self.views.of(back), told });
        }
    }

    /// Puts a value where the guest would have written another one.
    fn put_memory(&self, parked: &Parked, plan: &Plan) {
        let (Some(value), Cause::Access { gfn, offset, .. }) = (plan.memory, parked.request.cause) else {
            return;
        };
        let written = self.instruction(parked.event.view, &parked.mode, parked.request.rip);
        let bytes = written.as_ref().and_then(code::writes).unwrap_or(0).min(16);
        let at = self.views.frame(parked.event.view, gfn) * PAGE_SIZE + offset % PAGE_SIZE;
        let value = value.to_le_bytes();
        if let Err(error) = self.shared.memory.mappings().write(at, value.get(..bytes).unwrap_or_default()) {
            log::error!("the value could not be put into memory: {error}");
        }
    }

    /// How long a held vCPU has run, once it stands still: it tells of its event before it has stopped.
    pub fn stood(&self, vcpu: u32) -> Option<u64> {
        let since = Instant::now();
        for look in 0.. {
            match again(|| self.xen.ran(vcpu)) {
                Ok(Ran::For(time)) => return Some(time),
                // This thread itself may have stood still for long.
                Ok(Ran::On) if look < 100 || since.elapsed() < STOPS => thread::yield_now(),
                _ => break,
            }
        }
        None
    }

    /// Keeps in mind what Xen has yet to do.
    fn remember(&mut self, parked: &Parked, plan: &Plan, response: &Response) {
        let (vcpu, cause) = (parked.request.vcpu, parked.request.cause);
        let write = (plan.act == Act::Done && table::name(&cause).is_some()).then_some(cause);
        let write = write.filter(|_| self.events.holds_writes);
        let (registers, emulate) = (response.registers, response.flags & flag::EMULATE != 0);
        if registers.is_some() || write.is_some() || emulate {
            let ran = self.stood(vcpu);
            self.events.answered.insert(vcpu, Answered { at: Instant::now(), ran, registers, write });
        }
        if emulate {
            self.events.emulated.insert(vcpu, (parked.clone(), plan.act));
        }
    }

    fn lift(&mut self, parked: &Parked) -> Result<()> {
        match parked.request.cause {
            Cause::Access { gfn, .. } => self.lift_frame(parked.request.vcpu, gfn),
            // Without other views one instruction on another one is one instruction.
            _ => Ok(()),
        }
    }
}

fn put_result(general: &mut General, cause: &Cause, result: u128) {
    let [rax, rcx, rdx, rbx, ..] = &mut general.gpr;
    match cause {
        Cause::Cpuid { .. } => {
            let part = |n: u32| u64::from((result >> (32 * n)) as u32);
            (*rax, *rbx, *rcx, *rdx) = (part(0), part(1), part(2), part(3));
        }
        Cause::Io { bytes, .. } => *rax = merged(*rax, *bytes, result as u64),
        _ => {}
    }
}
