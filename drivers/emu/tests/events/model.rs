//! Random operations on views and rules against a simple reference.

use std::collections::HashMap;

use iced_x86::code_asm::*;
use proptest::prelude::*;
use vmtree_api::events::{Detail, Verdict, Wanted, Way};
use vmtree_api::views::{Remap, Rule};
use vmtree_api::x86::Reg;
use vmtree_api::{Access, Cancel, Driver, Gfn, Gpa, RegValue, ViewId};

use crate::bench::{CODE, V0, open, regs};

/// The frames that are played with.
const FIRST: u64 = 0x300;
const FRAMES: u64 = 4;

#[derive(Clone, Debug)]
enum Op {
    Create,
    Destroy(usize),
    Remap(usize, u64, Option<u64>),
    Copy(usize, u64),
    Switch(usize),
    Rule(usize, u64, u64, u8),
    Reset,
    Write(usize, u64, u8),
    Load(u64),
    Store(u64, u8, bool),
}

fn op() -> impl Strategy<Value = Op> {
    let (view, frame) = (0..5_usize, 0..FRAMES);
    prop_oneof![
        2 => Just(Op::Create),
        1 => view.clone().prop_map(Op::Destroy),
        2 => (view.clone(), frame.clone(), proptest::option::of(frame.clone()))
            .prop_map(|(view, frame, to)| Op::Remap(view, frame, to)),
        3 => (view.clone(), frame.clone()).prop_map(|(view, frame)| Op::Copy(view, frame)),
        3 => view.clone().prop_map(Op::Switch),
        2 => (view.clone(), frame.clone(), 1..=FRAMES, 0..5_u8)
            .prop_map(|(view, frame, many, access)| Op::Rule(view, frame, many, access)),
        1 => Just(Op::Reset),
        3 => (view, frame.clone(), any::<u8>()).prop_map(|(view, frame, byte)| Op::Write(view, frame, byte)),
        4 => frame.clone().prop_map(Op::Load),
        4 => (frame, any::<u8>(), any::<bool>()).prop_map(|(frame, byte, deny)| Op::Store(frame, byte, deny)),
    ]
}

/// What a view shows at a frame: the guest's own or another one, or a copy with this byte.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shown {
    Frame(u64),
    Copy(u8),
}

#[derive(Default)]
struct Model {
    /// The first byte of each frame.
    memory: [u8; FRAMES as usize],
    views: HashMap<u32, [Option<Shown>; FRAMES as usize]>,
    rules: Vec<Rule>,
    current: u32,
}

impl Model {
    fn shown(&self, view: u32, frame: u64) -> Shown {
        self.views[&view][frame as usize].unwrap_or(Shown::Frame(frame))
    }

    fn read(&self, view: u32, frame: u64) -> u8 {
        match self.shown(view, frame) {
            Shown::Frame(other) => self.memory[other as usize],
            Shown::Copy(byte) => byte,
        }
    }

    fn write(&mut self, view: u32, frame: u64, byte: u8) {
        match self.shown(view, frame) {
            Shown::Frame(other) => self.memory[other as usize] = byte,
            Shown::Copy(_) => self.views.get_mut(&view).unwrap()[frame as usize] = Some(Shown::Copy(byte)),
        }
    }

    fn rights(&self, frame: u64) -> Access {
        let gfn = Gfn(FIRST + frame);
        let of = |rule: &&Rule| rule.view.0 == self.current && rule.frames.contains(&gfn);
        self.rules.iter().find(of).map_or(Access::ALL, |rule| rule.access)
    }
}

fn access(number: u8) -> Access {
    let rw = Access::READ.union(Access::WRITE);
    [Access::NONE, Access::READ, Access::EXECUTE, rw, Access::READ.union(Access::EXECUTE)]
        [usize::from(number)]
}

struct Play {
    driver: Box<dyn Driver>,
    model: Model,
}

impl Play {
    /// Two instructions at the start of the code: a load and a store of one byte by RBX.
    fn new() -> Self {
        let driver = open(1, |a| {
            a.mov(al, byte_ptr(rbx)).unwrap();
            a.mov(byte_ptr(rbx), al).unwrap();
            let mut end = a.create_label();
            a.set_label(&mut end).unwrap();
            a.jmp(end).unwrap();
        });
        let mut model = Model::default();
        model.views.insert(0, [None; FRAMES as usize]);
        Self { driver, model }
    }

    /// Steps one instruction at `rip`, answering what it raises with `verdict`.
    fn step(&self, rip: u64, frame: u64, byte: u8, verdict: &Verdict) -> Vec<Way> {
        let word = |reg: Reg, value| (reg.id(), RegValue::Word(value));
        let gpa = (FIRST + frame) << 12;
        let changes = [word(Reg::Rip, rip), word(Reg::Rbx, gpa), word(Reg::Rax, u64::from(byte))];
        self.driver.registers().unwrap().write(V0, &changes).unwrap();
        let (execution, events) = (self.driver.execution().unwrap(), self.driver.events().unwrap());
        let mut seen = Vec::new();
        std::thread::scope(|scope| {
            let step = scope.spawn(|| execution.step(V0, 1, &Cancel::default()).unwrap());
            while !step.is_finished() {
                let Some(held) = events.next(std::time::Duration::from_micros(200)).unwrap() else {
                    continue;
                };
                assert!(
                    matches!(held.event().detail, Detail::Slat { page_walk: false, gpa: at, .. } if at.0 == gpa)
                );
                seen.push(held.event().way());
                held.answer(verdict).unwrap();
            }
            assert_eq!(step.join().unwrap(), 1);
        });
        seen
    }

    fn play(&mut self, op: &Op) {
        let views = self.driver.views().unwrap();
        let mut known: Vec<u32> = self.model.views.keys().copied().collect();
        known.sort_unstable();
        let pick = |index: usize| known[index % known.len()];
        let gfn = |frame: u64| Gfn(FIRST + frame);
        match *op {
            Op::Create => {
                let free = (0..).find(|id| !known.contains(id)).unwrap();
                assert_eq!(views.create().unwrap(), ViewId(free));
                self.model.views.insert(free, [None; FRAMES as usize]);
            }
            Op::Destroy(index) => {
                let view = pick(index);
                let may = view != 0 && view != self.model.current;
                assert_eq!(views.destroy(ViewId(view)).is_ok(), may);
                if may {
                    self.model.views.remove(&view);
                    self.model.rules.retain(|rule| rule.view.0 != view);
                }
            }
            Op::Remap(index, frame, to) => {
                let (view, to) = (pick(index), to.filter(|to| *to != frame));
                let remap = to.map_or(Remap::None, |to| Remap::Frame(gfn(to)));
                assert_eq!(views.remap(ViewId(view), gfn(frame), remap).is_ok(), view != 0);
                if view != 0 {
                    self.model.views.get_mut(&view).unwrap()[frame as usize] = to.map(Shown::Frame);
                }
            }
            Op::Copy(index, frame) => {
                let view = pick(index);
                assert_eq!(views.remap(ViewId(view), gfn(frame), Remap::Copy).is_ok(), view != 0);
                if view != 0 {
                    let byte = self.model.read(view, frame);
                    self.model.views.get_mut(&view).unwrap()[frame as usize] = Some(Shown::Copy(byte));
                }
            }
            Op::Switch(index) => {
                self.model.current = pick(index);
                views.switch(None, ViewId(self.model.current)).unwrap();
            }
            Op::Rule(index, frame, many, number) => {
                let view = ViewId(pick(index));
                self.model.rules.retain(|rule| rule.view != view);
                let frames = gfn(frame)..gfn((frame + many).min(FRAMES));
                self.model.rules.push(Rule { view, frames, access: access(number), hold: true });
            }
            Op::Reset => self.model.rules.clear(),
            Op::Write(index, frame, byte) => {
                let view = pick(index);
                assert_eq!(views.write(ViewId(view), Gpa((FIRST + frame) << 12), &[byte]).unwrap(), 1);
                self.model.write(view, frame, byte);
            }
            Op::Load(frame) => {
                let seen = self.step(CODE, frame, 0, &Verdict::Continue);
                let needs = !self.model.rights(frame).contains(Access::READ);
                assert_eq!(seen, if needs { vec![Way::Read] } else { vec![] });
                let got = regs(&*self.driver, V0).gpr[0] as u8;
                assert_eq!(got, self.model.read(self.model.current, frame));
            }
            Op::Store(frame, byte, deny) => {
                let verdict = if deny { Verdict::Deny } else { Verdict::Continue };
                let seen = self.step(CODE + 2, frame, byte, &verdict);
                let needs = !self.model.rights(frame).contains(Access::WRITE);
                assert_eq!(seen, if needs { vec![Way::Write] } else { vec![] });
                if !(needs && deny) {
                    self.model.write(self.model.current, frame, byte);
                }
            }
        }
        let wanted = Wanted { watches: Vec::new(), rules: self.model.rules.clone() };
        self.driver.events().unwrap().watch(&wanted).unwrap();
    }

    /// What all views show is what the reference shows.
    fn compare(&self) {
        let views = self.driver.views().unwrap();
        for view in self.model.views.keys() {
            for frame in 0..FRAMES {
                let mut byte = [0];
                views.read(ViewId(*view), Gpa((FIRST + frame) << 12), &mut byte).unwrap();
                assert_eq!(byte[0], self.model.read(*view, frame), "view {view}, frame {frame}");
            }
        }
        assert_eq!(views.current(V0).unwrap(), ViewId(self.model.current));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn views_and_rules_are_what_a_simple_reference_says(ops in proptest::collection::vec(op(), 1..40)) {
        let mut play = Play::new();
        let pause = play.driver.execution().unwrap().pause().unwrap();
        for op in &ops {
            play.play(op);
            play.compare();
        }
        drop(pause);
    }
}
