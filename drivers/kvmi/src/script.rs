//! A host that bytes play: it keeps to the protocol, refuses what the bytes say, and may be told to break it. It fails where the driver
//! does: an event answered twice, or never, or an answer to none.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use vmtree_api::events::{EventKind, Inject, Verdict, Wanted, Watch};
use vmtree_api::views::{Remap, Rule};
use vmtree_api::x86::Reg;
use vmtree_api::{Access, ErrorKind, Gfn, Gpa, Gva, MemoryMap, RegValue, Region, RegionKind, VcpuId, ViewId};

use crate::core::Core;
use crate::port::{
    Answer, Control, Epts, Events, General, Guest, Kind, Line, Raw, Refusal, Reply, Told, Vcpus, errno,
};
use crate::queue::{Queue, Taken};

const VCPUS: usize = 2;
const FRAMES: u64 = 64;

/// Numbers out of the bytes; zeros once they are used up.
struct Dice(VecDeque<u8>);

impl Dice {
    fn byte(&mut self) -> u8 {
        self.0.pop_front().unwrap_or(0)
    }

    fn below(&mut self, end: u8) -> u8 {
        self.byte() % end.max(1)
    }
}

#[derive(Default)]
struct Vcpu {
    /// The event that waits for its answer.
    at: Option<u32>,
    pauses: u32,
    step: bool,
}

/// What the host is.
struct Host {
    dice: Dice,
    vcpus: [Vcpu; VCPUS],
    seq: u32,
    /// Whether it may break the protocol.
    rogue: bool,
    broken: bool,
    closed: bool,
    /// Events that are on their way.
    sent: VecDeque<Told>,
}

impl Host {
    /// Now and then something is refused.
    fn refuses(&mut self) -> Answer<()> {
        if self.closed {
            return Err(Refusal::Gone("closed".to_owned()));
        }
        match self.dice.below(24) {
            1 => Err(Refusal::Errno(errno::EBUSY)),
            2 => Err(Refusal::Errno(errno::EINVAL)),
            _ => Ok(()),
        }
    }

    fn raise(&mut self, vcpu: usize, kind: Kind) {
        self.seq += 1;
        if let Some(at) = self.vcpus.get_mut(vcpu) {
            at.at = Some(self.seq);
        }
        let raw = Raw { general: [7; 18], ..Raw::default() };
        self.sent.push_back(Told { seq: self.seq, vcpu: vcpu as u16, view: 0, raw, kind });
    }

    fn kind(&mut self) -> Kind {
        let old = u64::from(self.dice.byte());
        match self.dice.below(8) {
            0 => Kind::Cr { cr: u16::from(self.dice.below(5)), old, new: 1 },
            1 => Kind::Msr { msr: 0xc000_0080, old, new: 1 },
            2 => Kind::Breakpoint { gpa: old, len: 1 },
            3 => Kind::Fault { gva: old, gpa: old << 12, access: self.dice.below(9) },
            4 => Kind::Descriptor { table: self.dice.below(6), write: true },
            5 => Kind::Cpuid { leaf: 1, subleaf: 0, len: 2 },
            6 => Kind::SingleStep,
            _ => Kind::Other(self.dice.byte()),
        }
    }

    /// What the vCPUs do next: those that run raise something, or are stopped.
    fn run(&mut self) {
        for vcpu in 0..VCPUS {
            if self.vcpus.get(vcpu).is_none_or(|vcpu| vcpu.at.is_some()) {
                continue;
            }
            let (step, pauses) = self.vcpus.get(vcpu).map_or((false, 0), |vcpu| (vcpu.step, vcpu.pauses));
            if step {
                self.raise(vcpu, Kind::SingleStep);
            } else if pauses > 0 {
                if let Some(vcpu) = self.vcpus.get_mut(vcpu) {
                    vcpu.pauses -= 1;
                }
                self.raise(vcpu, Kind::Pause);
            } else if self.dice.below(3) == 1 {
                let kind = self.kind();
                self.raise(vcpu, kind);
            }
        }
        if self.rogue && self.dice.below(16) == 1 {
            self.broken = true;
            let (vcpu, kind) = (usize::from(self.dice.below(4)), self.kind());
            self.raise(vcpu, kind);
        }
    }
}

#[derive(Clone)]
struct Script(Rc<RefCell<Host>>);

impl Script {
    fn asked(&self) -> Answer<()> {
        self.0.borrow_mut().refuses()
    }
}

impl Guest for Script {
    fn vcpus(&mut self) -> Answer<u32> {
        Ok(VCPUS as u32)
    }
    fn max_gfn(&mut self) -> Answer<u64> {
        Ok(FRAMES)
    }
    fn read(&mut self, _gpa: u64, _buf: &mut [u8]) -> Answer<()> {
        self.asked()
    }
    fn write(&mut self, _gpa: u64, _data: &[u8]) -> Answer<()> {
        self.asked()
    }
    fn access(&mut self, _view: u16, gfns: Range<u64>, rights: u8) -> Answer<()> {
        assert!(gfns.start < gfns.end && gfns.end <= FRAMES && rights < 8, "{gfns:?} {rights}");
        self.asked()
    }
    fn translate(&mut self, _vcpu: u16, gva: u64) -> Answer<u64> {
        self.asked().map(|()| gva)
    }
}

impl Vcpus for Script {
    fn registers(&mut self, _vcpu: u16, msrs: &[u32]) -> Answer<Raw> {
        let msrs = msrs.iter().map(|index| (*index, 0)).collect();
        self.asked().map(|()| Raw { msrs, ..Raw::default() })
    }
    fn xcr0(&mut self, _vcpu: u16) -> Answer<u64> {
        self.asked().map(|()| 1)
    }
    fn set_general(&mut self, vcpu: u16, _general: &General) -> Answer<()> {
        let stands = self.0.borrow().vcpus.get(usize::from(vcpu)).is_some_and(|vcpu| vcpu.at.is_some());
        assert!(stands || self.0.borrow().broken, "registers of a vCPU that runs were set");
        self.asked()
    }
    fn pause_all(&mut self) -> Answer<()> {
        self.asked()?;
        self.0.borrow_mut().vcpus.iter_mut().for_each(|vcpu| vcpu.pauses += 1);
        Ok(())
    }
    fn pause(&mut self, vcpu: u16) -> Answer<()> {
        self.asked()?;
        if let Some(vcpu) = self.0.borrow_mut().vcpus.get_mut(usize::from(vcpu)) {
            vcpu.pauses += 1;
        }
        Ok(())
    }
    fn inject(&mut self, _vcpu: u16, vector: u8, _error: u32, _address: u64) -> Answer<()> {
        assert!(vector < 32);
        self.asked()
    }
}

impl Events for Script {
    fn has_event(&mut self, _kind: u8) -> Answer<()> {
        Ok(())
    }
    fn has_step(&mut self) -> Answer<()> {
        Ok(())
    }
    fn control(&mut self, vcpu: u16, what: Control, on: bool) -> Answer<()> {
        self.asked()?;
        if what == Control::Step
            && let Some(vcpu) = self.0.borrow_mut().vcpus.get_mut(usize::from(vcpu))
        {
            vcpu.step = on;
        }
        Ok(())
    }
    fn tell_unhook(&mut self) -> Answer<()> {
        Ok(())
    }
    fn next(&mut self) -> Answer<Option<Told>> {
        if self.0.borrow().closed {
            return Err(Refusal::Gone("closed".to_owned()));
        }
        Ok(self.0.borrow_mut().sent.pop_front())
    }
    fn reply(&mut self, told: &Told, _reply: Reply) -> Answer<()> {
        let mut host = self.0.borrow_mut();
        if host.closed {
            return Err(Refusal::Gone("closed".to_owned()));
        }
        let broken = host.broken;
        if let Some(vcpu) = host.vcpus.get_mut(usize::from(told.vcpu)) {
            assert!(vcpu.at == Some(told.seq) || broken, "an answer to what nobody waits for: {told:?}");
            vcpu.at = None;
        }
        Ok(())
    }
}

impl Epts for Script {
    fn has_views(&mut self) -> Answer<()> {
        Ok(())
    }
    fn create(&mut self) -> Answer<u16> {
        self.asked()?;
        Ok(u16::from(self.0.borrow_mut().dice.below(4)))
    }
    fn destroy(&mut self, _view: u16) -> Answer<()> {
        self.asked()
    }
    fn switch(&mut self, _vcpu: u16, _view: u16) -> Answer<()> {
        self.asked()
    }
    fn change(&mut self, _view: u16, _gfn: u64, _to: u64) -> Answer<()> {
        self.asked()
    }
    fn alloc(&mut self, gfn: u64) -> Answer<()> {
        assert!(gfn >= FRAMES);
        self.asked()
    }
    fn free(&mut self, _gfn: u64) -> Answer<()> {
        self.asked()
    }
}

impl Line for Script {
    fn wait(&mut self, _timeout: Duration) {}
    fn close(&mut self) {
        self.0.borrow_mut().closed = true;
    }
}

fn map() -> Arc<MemoryMap> {
    let region = Region { start: Gpa(0), end: Gpa(FRAMES << 12), kind: RegionKind::Ram, block: None };
    Arc::new(MemoryMap::new(1, vec![region]))
}

fn wanted(dice: &mut Dice) -> Wanted {
    let mut wanted = Wanted::default();
    for _ in 0..dice.below(4) {
        let kind = EventKind::ALL.get(usize::from(dice.below(15))).copied().unwrap_or(EventKind::Cr3);
        let vcpu = (dice.below(3) == 0).then(|| VcpuId(u32::from(dice.below(3))));
        wanted.watches.push(Watch { kind, way: None, vcpu, index: None, hold: dice.below(2) == 0 });
    }
    let mut start = 0;
    for _ in 0..dice.below(4) {
        start += u64::from(dice.below(16));
        let end = start + 1 + u64::from(dice.below(8));
        let access = [Access::NONE, Access::READ, Access::WRITE, Access::ALL];
        let access = access.get(usize::from(dice.below(4))).copied().unwrap_or_default();
        let view = ViewId(u32::from(dice.below(2)));
        wanted.rules.push(Rule { view, frames: Gfn(start)..Gfn(end), access, hold: dice.below(2) == 0 });
        start = end;
    }
    wanted
}

fn verdict(dice: &mut Dice) -> Verdict {
    let view = ViewId(u32::from(dice.below(3)));
    match dice.below(9) {
        0 => Verdict::Deny,
        1 => Verdict::Value(u128::from(dice.byte()) << dice.below(120)),
        2 => Verdict::Set(vec![(Reg::Rip.id(), RegValue::Word(u64::from(dice.byte())))]),
        3 => Verdict::Set(vec![(Reg::Rax.id(), RegValue::Word(1)), (Reg::Cr3.id(), RegValue::Word(1))]),
        4 => Verdict::Step(Some(view)),
        5 => Verdict::Step(None),
        6 => Verdict::View(view),
        7 => Verdict::Inject(Inject::PageFault { address: Gva(1), error: u32::from(dice.byte()) }),
        _ => Verdict::Continue,
    }
}

/// One of the things that users do.
fn act(core: &mut Core, dice: &mut Dice, queue: &Queue, held: &mut Vec<(usize, u64)>, pauses: &mut Vec<u64>) {
    let index = usize::from(dice.below(VCPUS as u8));
    // What is refused changes nothing; that nothing is lost is looked at in the end.
    match dice.below(10) {
        0 => drop(core.watch(&wanted(dice))),
        1 => pauses.extend(core.pause()),
        2 => pauses.pop().into_iter().for_each(|epoch| core.resume(epoch)),
        3 => drop(core.step(index)),
        4 => drop(core.end_steps(index)),
        5 => drop(core.create_view()),
        6 => drop(core.destroy_view(ViewId(u32::from(dice.below(4))))),
        7 => {
            let to = [Remap::Copy, Remap::None, Remap::Frame(Gfn(3))];
            let to = to.get(usize::from(dice.below(3))).copied().unwrap_or(Remap::None);
            drop(core.remap(ViewId(u32::from(dice.below(4))), Gfn(u64::from(dice.below(70))), to));
        }
        8 => core.force_resume(),
        _ => {
            while let Taken::Event((event, serial), _) = queue.take(Duration::ZERO) {
                held.extend(serial.map(|serial| (event.vcpu.0 as usize, serial)));
            }
            let Some((index, serial)) = held.pop() else { return };
            let answered = core.answer(index, serial, &verdict(dice));
            let ended = |kind| matches!(kind, ErrorKind::Gone | ErrorKind::Stale);
            if answered.is_err_and(|error| !ended(error.kind())) {
                // It is held as before, and Continue always lets it go.
                let continued = core.answer(index, serial, &Verdict::Continue);
                assert!(continued.is_ok() || core.gone().is_some(), "{continued:?}");
            }
        }
    }
}

/// Plays a session of these bytes; `rogue`, the host may break the protocol. In the end no vCPU waits for an answer.
pub fn session(bytes: &[u8], rogue: bool) {
    let (mine, theirs) = bytes.split_at(bytes.len() / 2);
    let host = Host {
        dice: Dice(theirs.iter().copied().collect()),
        vcpus: Default::default(),
        seq: 0,
        rogue,
        broken: false,
        closed: false,
        sent: VecDeque::new(),
    };
    let script = Script(Rc::new(RefCell::new(host)));
    let queue = Arc::new(Queue::default());
    let mut core = Core::new(Box::new(script.clone()), VCPUS as u32, map(), Arc::clone(&queue));
    let (mut dice, mut held, mut pauses) = (Dice(mine.iter().copied().collect()), Vec::new(), Vec::new());
    while !dice.0.is_empty() {
        script.0.borrow_mut().run();
        core.intake();
        act(&mut core, &mut dice, &queue, &mut held, &mut pauses);
        core.intake();
    }
    core.leave();
    let host = script.0.borrow();
    assert!(host.closed);
    // What a host sent that kept to the protocol was answered, or is still on its way and goes with the connection.
    let waiting = host
        .vcpus
        .iter()
        .filter_map(|vcpu| vcpu.at)
        .filter(|seq| host.sent.iter().all(|told| told.seq != *seq));
    assert!(host.broken || core.gone().is_some() || waiting.count() == 0, "a vCPU waits for ever");
}
