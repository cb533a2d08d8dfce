//! Every call to Xen fails once, those that undo something too, in a session that does all that there is to do.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use vmtree_api::events::{EventKind, Held, Inject, Verdict, Wanted, Watch};
use vmtree_api::views::{Remap, Rule};
use vmtree_api::x86::Reg;
use vmtree_api::{Access, Cancel, Driver, Gfn, Gpa, Gva, RegValue, Result, VcpuId, ViewId};

use super::events::open;
use super::fake::Shared;
use super::slots::{request, view};
use crate::events::wire::{Slot, reason};

/// How long a session may take.
const LONG: Duration = Duration::from_secs(60);
/// How long an event is waited for that may have fallen victim to the fault.
const SOON: Duration = Duration::from_millis(20);

fn wanted() -> Wanted {
    let kinds = [
        (EventKind::Cr3, true),
        (EventKind::Msr, true),
        (EventKind::Cpuid, false),
        (EventKind::Io, true),
        (EventKind::Breakpoint, true),
    ];
    let watch = |(kind, hold)| Watch { kind, way: None, vcpu: None, index: None, hold };
    let rules = vec![Rule { view: ViewId(0), frames: Gfn(5)..Gfn(7), access: Access::READ, hold: true }];
    Wanted { watches: kinds.map(watch).to_vec(), rules }
}

/// A session with a domain; what failed in it.
struct Session<'a> {
    xen: &'a Shared,
    driver: &'a dyn Driver,
    failed: Vec<String>,
}

impl Session<'_> {
    fn step<T>(&mut self, step: impl FnOnce(&dyn Driver) -> Result<T>) -> Option<T> {
        let done = step(self.driver);
        done.map_err(|error| self.failed.push(error.to_string())).ok()
    }

    /// Xen asks, and this is the answer; what is refused is answered otherwise.
    fn event(&mut self, slot: Slot, verdict: Verdict) {
        let ring = self.xen.state.lock().ring;
        // Xen asks nobody who does not listen, and not for a vCPU that is held already.
        if !ring || !self.is_answered() {
            return;
        }
        self.xen.ask(slot);
        let Some(held) = self.next() else { return };
        if let Err(refused) = held.answer(&verdict) {
            self.failed.push(refused.error.to_string());
            drop(refused.held);
        }
    }

    /// Answers what the fault has left unanswered.
    fn is_answered(&mut self) -> bool {
        for _ in 0..50 {
            let state = self.xen.state.lock();
            if state.waiting == 0 && state.requests.is_empty() {
                return true;
            }
            drop(state);
            drop(self.step(|driver| driver.events().unwrap().next(SOON)));
        }
        false
    }

    /// The event, if the fault did not do away with it.
    fn next(&mut self) -> Option<Held> {
        for _ in 0..500 {
            let next = self.step(|driver| driver.events().unwrap().next(SOON))?;
            if next.is_some() || self.xen.state.lock().fails_in.is_none() {
                return next;
            }
        }
        panic!("no event");
    }

    fn all(&mut self) {
        let on = self.xen.state.lock().on;
        let write = |vcpu, new| request(reason::WRITE_CTRLREG, vcpu, Some(on), &[1, new, 0x1000], 0x1000);
        self.step(|driver| driver.events().unwrap().watch(&wanted()));
        self.event(write(0, 0x2000), Verdict::Continue);
        self.event(write(1, 0x2000), Verdict::Deny);
        self.event(write(0, 0x2000), Verdict::Value(0x3000));
        self.event(request(reason::CPUID, 1, Some(on), &[2, 0], 0x1000), Verdict::Continue);
        self.event(
            request(reason::SOFTWARE_BREAKPOINT, 0, Some(on), &[1, 0, 1 | 6 << 32], 0x1000),
            Verdict::Continue,
        );
        let set = Verdict::Set(vec![(Reg::Rax.id(), RegValue::Word(7))]);
        self.event(request(reason::MOV_TO_MSR, 1, Some(on), &[0xc000_0080, 0, 1], 0x1000), set);
        self.event(
            request(reason::IO_INSTRUCTION, 0, Some(on), &[1 | 0x80 << 32], 0x1000),
            Verdict::Value(1),
        );
        let on = self.xen.state.lock().on;
        let access = request(reason::MEM_ACCESS, 1, Some(on), &[5, 8, 0x5008, 2 | 8], 0x1000);
        self.event(access, Verdict::Continue);
        self.event(access, Verdict::Deny);
        let fault = Inject::PageFault { address: Gva(0x7000), error: 2 };
        self.event(write(0, 0x2000), Verdict::Inject(fault));
        self.views();
        self.step(|driver| driver.injection().unwrap().inject(VcpuId(1), Inject::Nmi));
        self.step(|driver| {
            driver.registers().unwrap().write(VcpuId(0), &[(Reg::Rbx.id(), RegValue::Word(7))])
        });
        let pause = self.step(|driver| driver.execution().unwrap().pause());
        let cancel = Cancel::default();
        cancel.raise();
        if pause.is_some() {
            self.step(|driver| driver.execution().unwrap().step(VcpuId(0), 3, &cancel));
        }
        drop(pause);
        // It is held when all ends.
        if self.xen.state.lock().ring && self.is_answered() {
            self.xen.ask(write(1, 0x4000));
        }
    }

    /// A write that the emulator can't be given: the view has other code. It is stepped on copies.
    fn dry(&mut self, on: u16) {
        // add [bx], al
        self.step(|driver| driver.memory().write(Gpa(0x9000), &[0, 7]));
        let access = request(reason::MEM_ACCESS, 0, Some(on), &[9, 8, 0x9008, 2 | 8], 0x9000);
        let answered = self.xen.state.lock().responses.len();
        self.event(access, Verdict::Deny);
        let stepped = self.xen.state.lock().responses.get(answered).map(view);
        let Some(at) = stepped.filter(|at| *at != on && self.xen.state.lock().ring) else { return };
        self.xen.ask(request(reason::SINGLESTEP, 0, Some(at), &[1], 0x9002));
        self.is_answered();
    }

    fn views(&mut self) {
        let Some(made) = self.step(|driver| driver.views().unwrap().create()) else { return };
        self.step(|driver| driver.views().unwrap().remap(made, Gfn(9), Remap::Copy));
        self.step(|driver| driver.views().unwrap().write(made, Gpa(0x9000), b"ours"));
        self.step(|driver| driver.views().unwrap().remap(made, Gfn(8), Remap::Frame(Gfn(9))));
        let mut more = wanted();
        more.rules.push(Rule { view: made, frames: Gfn(9)..Gfn(10), access: Access::NONE, hold: true });
        self.step(|driver| driver.events().unwrap().watch(&more));
        self.step(|driver| driver.views().unwrap().switch(None, made));
        let on = self.xen.state.lock().on;
        self.event(request(reason::CPUID, 0, Some(on), &[2, 0], 0x1000), Verdict::Continue);
        self.dry(on);
        self.step(|driver| driver.views().unwrap().switch(Some(VcpuId(0)), ViewId(0)));
        self.step(|driver| driver.views().unwrap().switch(None, ViewId(0)));
        self.step(|driver| driver.events().unwrap().watch(&wanted()));
        self.step(|driver| driver.views().unwrap().destroy(made));
        // One that stays.
        self.step(|driver| driver.views().unwrap().create());
    }
}

/// A session in which a call fails; whether it came to it, and how many steps did not work.
fn session(nth: u32) -> (bool, Vec<String>) {
    let xen = Shared::new(2);
    xen.state.lock().ran = [(0, 5), (1, 5)].into();
    let driver = open(&xen);
    {
        let mut state = xen.state.lock();
        (state.strict, state.fails_in) = (true, Some(nth));
    }
    let mut session = Session { xen: &xen, driver: &*driver, failed: Vec::new() };
    session.all();
    let failed = session.failed;
    drop(driver);
    let struck = xen.state.lock().fails_in.is_none();
    let state = xen.state.lock();
    assert_eq!((state.waiting, state.requests.len()), (0, 0), "call {nth} leaves vCPUs held");
    drop(state);
    xen.is_clean();
    (struck, failed)
}

/// The same on a thread of its own, which must end.
fn within(nth: u32) -> (bool, Vec<String>) {
    let (tell, told) = channel();
    let run = thread::spawn(move || tell.send(session(nth)));
    match told.recv_timeout(LONG) {
        Ok(came) => came,
        Err(RecvTimeoutError::Timeout) => panic!("call {nth} hangs"),
        Err(RecvTimeoutError::Disconnected) => {
            println!("call {nth}");
            std::panic::resume_unwind(run.join().unwrap_err());
        }
    }
}

#[test]
fn whichever_call_to_xen_fails_nothing_is_left() {
    let next = AtomicU32::new(0);
    // Most of a session is waiting.
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    let (struck, failed) = within(nth);
                    assert!(failed.len() <= 8, "call {nth} spoils {failed:?}");
                    if !struck {
                        assert!(failed.is_empty(), "a session without a fault: {failed:?}");
                        break;
                    }
                }
            });
        }
    });
    let made = next.into_inner() - 8;
    assert!(made > 150, "only {made} calls were made: the session tests too little");
    println!("{made} calls failed, each in a session of its own");
}
