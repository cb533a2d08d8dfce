//! The machine: its state under one lock, and how the outside gets in between two instructions.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use vmtree_api::{Error, ErrorKind, Host, Result, VcpuId};

use crate::cpu::vcpu::{Core, Vcpu};
use crate::cpu::{Stepped, bits};
use crate::events::queue::Queue;
use crate::phys::{INSTRUCTION_NS, World};
use crate::ram::Ram;
use crate::turns::Turns;

/// How many instructions run at least between two visits from outside, so that visitors can't starve the guest.
const LEAST: u32 = 256;
/// How long a visitor waits for another one before it looks again.
const MOMENT: Duration = Duration::from_millis(10);

/// All that changes while the machine runs.
pub struct State {
    /// The vCPUs.
    pub vcpus: Vec<Vcpu>,
    /// What they share.
    pub world: World,
    turns: Turns,
    /// Pauses that are held.
    pub pauses: u64,
    /// Counts forced resumes: pauses of an earlier epoch are void.
    pub epoch: u64,
    /// Why the machine ended.
    ended: Option<String>,
    stop: bool,
    /// Visits that are over.
    served: u64,
    /// The virtual time of the timer that the idle machine was waiting for, and how long that still takes in real time.
    asleep: Option<(u64, Duration)>,
}

/// Why the vCPUs stopped running for a moment.
#[derive(Debug)]
pub(crate) enum Went {
    /// Someone wants in.
    Called,
    /// All of them wait: for an interrupt, or for a verdict. Or there is no room for an event.
    Idle,
    /// One of them had a triple fault.
    Dead(usize),
}

impl State {
    /// A machine at time 0 that nobody has paused.
    pub fn new(vcpus: Vec<Vcpu>, ram: Arc<Ram>, seed: u64) -> Self {
        Self {
            world: World::new(ram, vcpus.len() as u32),
            vcpus,
            turns: Turns::new(seed),
            pauses: 0,
            epoch: 0,
            ended: None,
            stop: false,
            served: 0,
            asleep: None,
        }
    }

    /// Does one step of a vCPU, and lets its time pass.
    pub fn step(&mut self, index: usize) -> Stepped {
        let Some(vcpu) = self.vcpus.get_mut(index) else { return Stepped::Dead };
        let stepped = Core { vcpu, world: &mut self.world }.step();
        if matches!(stepped, Stepped::Ran | Stepped::Yielded) {
            self.world.advance(INSTRUCTION_NS);
        }
        stepped
    }

    /// Runs the vCPUs in turn until someone wants in or there is nothing to run. What is run does not depend on
    /// when someone wants in: that is looked at only after a step.
    pub(crate) fn go(&mut self, arrived: &AtomicU64) -> Went {
        let mut idle = 0;
        let mut done = 0;
        loop {
            let index = self.turns.current(self.world.now(), self.vcpus.len());
            match self.step(index) {
                Stepped::Ran => self.turns.used(),
                Stepped::Yielded => self.turns.end(),
                Stepped::Dead => return Went::Dead(index),
                // Did others use the time, a slow observer would decide what is run.
                Stepped::Held if self.vcpus.get(index).is_some_and(|vcpu| vcpu.trap.full) => {
                    return Went::Idle;
                }
                Stepped::Idle | Stepped::Held => {
                    self.turns.end();
                    idle += 1;
                    if idle >= self.vcpus.len() {
                        return Went::Idle;
                    }
                    continue;
                }
            }
            idle = 0;
            done += 1;
            if done >= LEAST && arrived.load(Ordering::Relaxed) != self.served {
                return Went::Called;
            }
        }
    }

    /// Virtual time jumps to `time`, in ns, unless that is past.
    pub fn skip(&mut self, time: u64) {
        self.world.advance(time.saturating_sub(self.world.now()));
    }

    /// When its own timer wakes a halted vCPU, in ns of virtual time; `None` if that will never be.
    pub fn wakes(&self, index: usize) -> Option<u64> {
        let (vcpu, apic) = (self.vcpus.get(index)?, self.world.apics.get(index)?);
        let heard = vcpu.cpu.regs.rflags & bits::RFLAGS_IF != 0 && apic.can_interrupt();
        apic.deadline().filter(|_| heard)
    }

    /// When the first timer wakes a vCPU, once all are halted or held: those that are held wait for their verdict, and
    /// those that wait for room in the queue stop the clock, so that an observer leaves no trace in virtual time.
    fn first_to_wake(&self) -> Option<u64> {
        if self.vcpus.iter().any(|vcpu| vcpu.trap.full) {
            return None;
        }
        let halted = self.vcpus.iter().enumerate().filter(|(_, vcpu)| !vcpu.trap.stands());
        halted.filter_map(|(index, _)| self.wakes(index)).min()
    }

    /// Records the end of the machine by a triple fault, and returns the reason.
    pub fn end(&mut self, index: usize) -> String {
        let rip = self.vcpus.get(index).map_or(0, |vcpu| vcpu.cpu.regs.rip);
        let why = format!("triple fault on vCPU {index} at rip {rip:#x}");
        self.close(&why);
        why
    }

    /// Nothing more comes of the machine.
    fn close(&mut self, why: &str) {
        self.world.ram.close();
        self.world.queue.close();
        self.ended = Some(why.to_owned());
    }

    /// The vCPU with this number.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn index(&self, op: &'static str, vcpu: VcpuId) -> Result<usize> {
        let index = vcpu.0 as usize;
        if index < self.vcpus.len() {
            return Ok(index);
        }
        Err(Error::new(
            ErrorKind::NotFound,
            op,
            format!("there is no vCPU {vcpu}: the machine has {}", self.vcpus.len()),
        ))
    }
}

/// A machine, shared by its thread and its visitors.
pub struct Machine {
    state: Mutex<State>,
    /// Where its events wait.
    queue: Arc<Queue>,
    /// Visits that were begun; ahead of [`State::served`] while someone waits for the lock.
    arrived: AtomicU64,
    /// The machine thread waits here for visitors to be done.
    left: Condvar,
    /// The machine thread sleeps here: paused, idle or ended.
    wake: Condvar,
    /// A visitor that waits for the change of another one waits here.
    answered: Condvar,
    host: Arc<dyn Host>,
}

/// A visit: the machine stands still meanwhile.
pub struct Visit<'a> {
    state: MutexGuard<'a, State>,
    machine: &'a Machine,
}

impl Deref for Visit<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Visit<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.state.served += 1;
        self.machine.left.notify_one();
    }
}

impl Visit<'_> {
    /// Sees to it that the machine looks at its state anew once the visit is over.
    pub fn changed(&mut self) {
        self.machine.wake.notify_one();
        self.machine.answered.notify_all();
    }

    /// Waits a moment for a change by another visitor.
    pub fn wait(mut self) {
        let machine = self.machine;
        machine.answered.wait_for(&mut self.state, MOMENT);
    }
}

impl Machine {
    /// A machine that does not run yet.
    pub fn new(vcpus: Vec<Vcpu>, ram: Arc<Ram>, seed: u64, host: Arc<dyn Host>) -> Self {
        let state = State::new(vcpus, ram, seed);
        Self {
            queue: state.world.queue.clone(),
            state: Mutex::new(state),
            arrived: AtomicU64::new(0),
            left: Condvar::new(),
            wake: Condvar::new(),
            answered: Condvar::new(),
            host,
        }
    }

    /// Where its events wait.
    pub fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    /// Gets in between two instructions, within microseconds.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`] once the machine has ended.
    pub fn visit(&self, op: &'static str) -> Result<Visit<'_>> {
        let visit = self.come_in();
        match &visit.ended {
            Some(why) => Err(Error::new(ErrorKind::Gone, op, format!("the machine has ended: {why}"))),
            None if visit.stop => Err(Error::new(ErrorKind::Gone, op, "the machine was closed")),
            None => Ok(visit),
        }
    }

    /// Gets in, ended or not.
    fn come_in(&self) -> Visit<'_> {
        self.arrived.fetch_add(1, Ordering::Relaxed);
        Visit { state: self.state.lock(), machine: self }
    }

    /// Tells the host of the end. The caller holds no lock.
    pub fn tell_end(&self, why: &str) {
        log::debug!("the built-in machine ends: {why}");
        self.host.ended(why);
    }

    /// Asks the machine thread to end.
    fn stop(&self) {
        let mut visit = self.come_in();
        visit.stop = true;
        visit.world.queue.close();
        visit.changed();
    }

    /// The machine thread.
    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            // Those who have come by now go first. Later ones wait for the next break: else, where several come
            // again and again, there would always be one more.
            let arrived = self.arrived.load(Ordering::Relaxed);
            while state.served < arrived {
                self.left.wait(&mut state);
            }
            if state.stop {
                return;
            }
            if state.pauses > 0 || state.ended.is_some() {
                self.wake.wait(&mut state);
                continue;
            }
            match state.go(&self.arrived) {
                Went::Called => {}
                Went::Idle => self.sleep(&mut state),
                Went::Dead(index) => {
                    let why = state.end(index);
                    MutexGuard::unlocked(&mut state, || self.tell_end(&why));
                }
            }
        }
    }

    /// Sleeps in real time until the next timer, then lets virtual time jump there. Visitors come in meanwhile; one
    /// that changed something ends the sleep early, and the next sleep goes on where this one was.
    fn sleep(&self, state: &mut MutexGuard<'_, State>) {
        let Some(time) = state.first_to_wake() else {
            self.wake.wait(state);
            return;
        };
        let mut left = Duration::from_nanos(time.saturating_sub(state.world.now()));
        if let Some((_, slept)) = state.asleep.take().filter(|(before, _)| *before == time) {
            left = left.min(slept);
        }
        let begun = Instant::now();
        // A timer centuries ahead is as good as none: the condition variable then waits without an end.
        let early = !self.wake.wait_for(state, left).timed_out();
        if early || state.pauses > 0 || state.stop {
            state.asleep = Some((time, left.saturating_sub(begun.elapsed())));
        } else {
            state.skip(time);
        }
    }
}

/// Tells the host where the machine thread dies by a mistake of ours.
struct Alarm<'a>(&'a Machine);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let why = "its thread died by a mistake in vmtree; please report it".to_owned();
            let mut state = self.0.state.lock();
            state.close(&why);
            drop(state);
            self.0.tell_end(&why);
        }
    }
}

/// The machine with its thread; dropping it ends the thread.
pub struct Running {
    machine: Arc<Machine>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts the thread.
    ///
    /// # Errors
    /// The host has no thread for it.
    pub fn start(machine: Arc<Machine>) -> Result<Self> {
        let running = machine.clone();
        let thread = std::thread::Builder::new()
            .name("vmtree-emu".to_owned())
            .spawn(move || {
                let _alarm = Alarm(&running);
                running.run();
            })
            .map_err(|error| {
                Error::new(ErrorKind::Io, "open emu", "the machine's thread can't be started")
                    .caused_by(error)
            })?;
        Ok(Self { machine, thread: Some(thread) })
    }

    /// The machine.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.machine.stop();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}
