//! Events, verdicts, views and injection, on a machine without its thread.

mod guest;
mod injected;
mod kinds;
mod memory;
mod moved;
mod registers;
mod state;
mod walks;
mod wild;

use std::time::Duration;

use iced_x86::code_asm::{CodeAssembler, r15d};
use vmtree_api::events::{Event, EventKind, Verdict, Watch};
use vmtree_api::views::Rule;
use vmtree_api::x86::Reg;
use vmtree_api::{Access, ErrorKind, Gfn, RegValue, ViewId};

use super::Bench;
use crate::cpu::Stepped;
use crate::events::armed::Armed;
use crate::events::queue::Taken;
use crate::events::verdict::answer;

/// A watch of a kind in every way.
pub fn every(kind: EventKind) -> Watch {
    Watch { kind, way: None, vcpu: None, index: None, hold: true }
}

/// A rule of view 0 over the page at `gpa`.
pub fn page(gpa: u64, access: Access) -> Rule {
    Rule { view: ViewId(0), frames: Gfn(gpa >> 12)..Gfn((gpa >> 12) + 1), access, hold: true }
}

impl Bench {
    /// One vCPU with this code and a HLT behind it, watched.
    pub fn watched(watch: Watch, code: impl FnOnce(&mut CodeAssembler)) -> Self {
        let mut bench = Self::new(|a| {
            code(a);
            a.hlt().unwrap();
        });
        bench.watch(&[watch]);
        bench
    }

    pub fn watch(&mut self, watches: &[Watch]) {
        self.state.world.armed = Armed::new(watches);
    }

    pub fn rules(&mut self, rules: &[Rule]) {
        self.state.world.slat.set_rules(rules);
        self.state.vcpus.iter_mut().for_each(|vcpu| vcpu.tlb.flush());
    }

    /// The next event that was raised.
    pub fn event(&mut self) -> Option<(Event, Option<u64>)> {
        match self.state.world.queue.take(Duration::ZERO) {
            Taken::Event(raised, _) => Some((raised.event, raised.serial)),
            _ => None,
        }
    }

    /// Runs to the next event that is held, and stays there whatever is tried.
    pub fn held(&mut self) -> Event {
        for _ in 0..10_000 {
            if self.state.vcpus[0].trap.held.is_some() {
                break;
            }
            match self.state.step(0) {
                Stepped::Ran | Stepped::Yielded | Stepped::Held => {}
                other => panic!("{other:?} at {:#x}", self.regs().rip),
            }
        }
        let (now, before) = (self.state.world.now(), self.regs().clone());
        assert_eq!(self.state.step(0), Stepped::Held);
        assert_eq!((self.state.world.now(), self.regs().clone()), (now, before), "no time passes");
        let (event, serial) = self.event().expect("an event");
        assert!(serial.is_some() && self.event().is_none());
        event
    }

    pub fn try_answer(&mut self, verdict: Verdict) -> vmtree_api::Result<()> {
        let serial = self.state.vcpus[0].trap.held.expect("held").serial;
        answer(&mut self.state, 0, serial, &verdict)
    }

    pub fn answer(&mut self, verdict: Verdict) {
        self.try_answer(verdict).unwrap();
    }

    /// The verdict is refused, and the vCPU is held as before.
    pub fn refused(&mut self, verdict: Verdict, kind: ErrorKind) {
        let error = self.try_answer(verdict).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(self.state.step(0), Stepped::Held);
    }
}

/// Sets one register.
pub fn word(reg: Reg, value: u64) -> Verdict {
    Verdict::Set(vec![(reg.id(), RegValue::Word(value))])
}

/// A verdict is given to the one event that the code raises, and this is what comes of it.
pub fn one(
    watch: Watch,
    code: impl FnOnce(&mut CodeAssembler),
    verdict: Verdict,
    look: impl FnOnce(&mut Bench, Event),
) {
    let mut bench = Bench::watched(watch, code);
    for vector in [1, 3, 13, 14, 32] {
        bench.handler(vector, 0, 0, |a| {
            a.mov(r15d, u32::from(vector)).unwrap();
            a.hlt().unwrap();
        });
    }
    let event = bench.held();
    bench.answer(verdict);
    bench.run();
    assert!(bench.event().is_none(), "once");
    look(&mut bench, event);
}
